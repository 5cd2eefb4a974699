//! Nothing from outside is trusted: names, pins, tokens, paths, sizes, speeds (DESIGN R10).

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::time::Duration;

use agent::AgentError;
use common::*;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use sync::client::{AgentClient, ClientError, Timeouts};
use sync::wire::{ErrorCode, Invitation};

fn client(invitation: &Invitation) -> AgentClient {
    AgentClient::new(invitation, Timeouts::default()).unwrap()
}

#[test]
fn a_wrong_token_is_turned_away_from_every_verb() {
    let world = World::new();
    for token in ["", "x", &"0".repeat(64), &world.invitation.token[..63]] {
        let wrong = Invitation {
            token: token.to_owned(),
            ..world.invitation.clone()
        };
        let client = client(&wrong);
        assert_eq!(code(client.health()), ErrorCode::Unauthorized);
        assert_eq!(code(client.container("box")), ErrorCode::Unauthorized);
        assert_eq!(code(client.inventory("box")), ErrorCode::Unauthorized);
    }
    assert_eq!(
        world.client.health().unwrap().version,
        env!("CARGO_PKG_VERSION")
    );
}

#[test]
fn another_pin_is_not_the_agent() {
    let world = World::new();
    let mut wrong = world.invitation.clone();
    wrong.ca_fingerprint[0] ^= 1;
    let error = client(&wrong).health().unwrap_err();
    assert!(
        matches!(error, ClientError::NotTheAgent { .. }),
        "{error:?}"
    );
    assert!(!error.retry() && !error.offline());
}

#[test]
fn another_name_is_not_the_agent() {
    // All of 127/8 leads to this machine, but the certificate names 127.0.0.1 only.
    let world = World::with(|c| c.listen = "0.0.0.0:0".parse().unwrap());
    let port = world.agent.as_ref().unwrap().addr().port();
    let at = |host: &str| Invitation {
        url: format!("https://{host}:{port}"),
        ..world.invitation.clone()
    };
    client(&at("127.0.0.1")).health().unwrap();
    client(&at("localhost")).health().unwrap();
    let error = client(&at("127.0.0.2")).health().unwrap_err();
    assert!(
        matches!(error, ClientError::NotTheAgent { .. }),
        "{error:?}"
    );
}

#[test]
fn a_name_that_was_given_is_the_agents() {
    let world = World::with(|c| {
        c.listen = "0.0.0.0:0".parse().unwrap();
        c.names = vec!["127.0.0.3".to_owned(), "share.example".to_owned()];
    });
    assert!(world.invitation.url.starts_with("https://127.0.0.3:"));
    world.client.health().unwrap();
}

/// The CA's certificate is public: whoever shows it must still have a certificate signed by it.
#[test]
fn an_impostor_that_shows_the_right_ca_is_found_out() {
    let world = World::new();
    let pem = std::fs::read(world.dir.path().join("state/ca.pem")).unwrap();
    let ca =
        <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(
            &pem,
        )
        .unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    // One more: signed by a CA that has the same name as ours.
    let false_ca_key = rcgen::KeyPair::generate().unwrap();
    let mut false_ca = rcgen::CertificateParams::default();
    false_ca.distinguished_name = rcgen::DistinguishedName::new();
    false_ca
        .distinguished_name
        .push(rcgen::DnType::CommonName, "pstsyncd agent CA");
    false_ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = rcgen::Issuer::new(false_ca, false_ca_key);
    let forged = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    for certificate in [own, forged] {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone(), ca.clone()],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let impostor = std::thread::spawn(move || {
            let (mut tcp, _) = listener.accept().unwrap();
            let mut tls = rustls::ServerConnection::new(Arc::new(config)).unwrap();
            let mut got = Vec::new();
            let _ = rustls::Stream::new(&mut tls, &mut tcp).read_to_end(&mut got);
            got
        });
        let url = format!("https://127.0.0.1:{port}");
        let error = client(&Invitation {
            url,
            ..world.invitation.clone()
        })
        .health()
        .unwrap_err();
        assert!(
            matches!(error, ClientError::NotTheAgent { .. }),
            "{error:?}"
        );
        assert!(impostor.join().unwrap().is_empty(), "the token was sent");
    }
}

#[test]
fn paths_stay_beneath_the_root() {
    let world = World::new();
    let root = world.dir.path().join("root");
    std::fs::write(world.dir.path().join("outside"), fresh()).unwrap();
    std::fs::create_dir(root.join("dir")).unwrap();
    std::fs::write(root.join("dir/box"), fresh()).unwrap();
    symlink(world.dir.path().join("outside"), root.join("link")).unwrap();
    symlink("box", root.join("inner")).unwrap();
    symlink(world.dir.path(), root.join("up")).unwrap();
    for path in [
        "",
        "../outside",
        "dir/../../outside",
        "dir/../box",
        "/etc/passwd",
        "link",
        "inner",
        "up/outside",
        "./box",
        "dir//box",
        "box\0",
        "box.pstsyncd-redo",
    ] {
        assert_eq!(
            code(world.client.container(path)),
            ErrorCode::BadPath,
            "{path:?}"
        );
    }
    assert_eq!(
        code(world.client.container("dir")),
        ErrorCode::NotAContainer
    );
    world.client.container("dir/box").unwrap();
    assert_eq!(
        std::fs::read(world.dir.path().join("outside")).unwrap(),
        fresh()
    );
}

#[test]
fn a_pipe_on_the_share_does_not_hang_the_agent() {
    let world = World::new();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        world.dir.path().join("root/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert_eq!(
        code(world.client.container("pipe")),
        ErrorCode::NotAContainer
    );
}

#[test]
fn a_body_over_the_limit_is_refused() {
    let world = World::with(|c| c.limits.body = 64 << 10);
    assert_eq!(world.client.health().unwrap().max_body, 64 << 10);
    let mut noise = vec![0; 200_000];
    sync::pin::random(&mut noise).unwrap();
    let error = world.send(1, &noise, None, [0; 32]).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::TooLarge), "{error:?}");
    world.apply(1, &[(1, 1)]).unwrap();
}

#[test]
fn a_package_that_unpacks_to_too_much_is_refused() {
    let world = World::with(|c| c.limits.package = 1 << 20);
    let bomb = vec![0; 64 << 20];
    assert_eq!(
        code(world.send(1, &bomb, None, [0; 32])),
        ErrorCode::TooLarge
    );
    world.apply(1, &[(1, 1)]).unwrap();
}

/// A TLS connection to the agent, for requests that our client would not send.
fn raw(world: &World) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let config = sync::pin::client_config(world.invitation.ca_fingerprint).unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let tcp = TcpStream::connect(world.agent.as_ref().unwrap().addr()).unwrap();
    rustls::StreamOwned::new(tls, tcp)
}

fn ask(world: &World, head: &str, body: &[u8]) -> String {
    let mut stream = raw(world);
    let token = &world.invitation.token;
    let head =
        format!("{head}\r\nhost: a\r\nauthorization: Bearer {token}\r\nconnection: close\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    // A peer that closes without TLS's farewell is fine here.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn bodies_that_are_no_records_are_refused() {
    let world = World::new();
    let answer = ask(
        &world,
        "POST /v1/apply HTTP/1.1",
        b"content-length: 4\r\n\r\nabcd",
    );
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains(r#""code":"bad_request""#), "{answer}");
    let answer = ask(
        &world,
        "POST /v1/apply HTTP/1.1",
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let answer = ask(&world, "GET /v1/containers HTTP/1.1", b"\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let answer = ask(&world, "GET /v2/containers HTTP/1.1", b"\r\n");
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let answer = ask(&world, "DELETE /v1/apply HTTP/1.1", b"\r\n");
    assert!(answer.contains(r#""code":"unknown_verb""#), "{answer}");
}

#[test]
fn a_body_that_does_not_come_is_given_up() {
    let world = World::with(|c| c.limits.idle = Duration::from_millis(300));
    let answer = ask(
        &world,
        "POST /v1/apply HTTP/1.1",
        b"content-length: 1000\r\n\r\nabc",
    );
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[test]
fn a_head_that_does_not_come_is_given_up() {
    let world = World::with(|c| c.limits.head = Duration::from_millis(300));
    let mut stream = raw(&world);
    stream
        .write_all(b"GET /v1/health HTTP/1.1\r\nhost")
        .unwrap();
    let mut answer = Vec::new();
    // Ends at all: that is the test.
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn connections_are_bounded() {
    let world = World::with(|c| c.limits.connections = 2);
    let mut held = [raw(&world), raw(&world)];
    for stream in &mut held {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    let mut third = raw(&world);
    assert!(third.conn.complete_io(&mut third.sock).is_err());
    drop(held);
    // Room again, as soon as the agent has seen them go.
    while let Err(error) = world.client.health() {
        assert!(error.offline(), "{error:?}");
    }
}

#[test]
fn secrets_are_private_and_the_token_is_not_kept() {
    let world = World::new();
    let state = world.dir.path().join("state");
    assert_eq!(
        std::fs::metadata(&state).unwrap().permissions().mode() & 0o777,
        0o700
    );
    for name in ["ca.key", "ca.pem", "token.blake3", "client.json"] {
        let path = state.join(name);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
        let holds_token = String::from_utf8_lossy(&std::fs::read(&path).unwrap())
            .contains(&world.invitation.token);
        assert_eq!(holds_token, name == "client.json", "{name}");
    }
    assert!(!format!("{:?}", world.invitation).contains(&world.invitation.token));
}

#[test]
fn pin_and_token_survive_a_restart_also_without_the_invitation() {
    let mut world = World::new();
    let before = world.invitation.clone();
    let fingerprint = world.agent.as_ref().unwrap().ca_fingerprint();
    world.stop();
    std::fs::remove_file(world.dir.path().join("state/client.json")).unwrap();
    let config = config(world.dir.path());
    let agent = world
        .runtime
        .block_on(agent::start(config, Arc::new(Toy)))
        .unwrap();
    assert_eq!(agent.ca_fingerprint(), fingerprint);
    assert_eq!(agent.invitation(), None);
    client(&Invitation {
        url: agent.url().to_owned(),
        ..before
    })
    .health()
    .unwrap();
}

#[test]
fn what_keeps_an_agent_from_starting_is_said_clearly() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let fails = |change: &dyn Fn(&mut agent::AgentConfig)| {
        std::fs::create_dir_all(dir.path().join("root")).unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        world
            .runtime
            .block_on(agent::start(config, Arc::new(Toy)))
            .unwrap_err()
    };
    let error = fails(&|c| c.listen = world.agent.as_ref().unwrap().addr());
    assert!(matches!(error, AgentError::Listen { .. }));
    assert!(error.to_string().contains("--listen"), "{error}");
    let error = fails(&|c| c.root = dir.path().join("none"));
    assert!(matches!(error, AgentError::Root { .. }));
    assert!(error.to_string().contains("--root"), "{error}");
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let error = fails(&|c| c.root = file.clone());
    assert!(matches!(error, AgentError::Root { .. }), "{error}");
    let error = fails(&|c| c.state_dir = file.clone());
    assert!(matches!(error, AgentError::State { .. }), "{error}");
    let error = fails(&|c| c.state_dir = world.dir.path().join("state"));
    assert!(
        matches!(error, AgentError::Database(sync::kv::KvError::InUse(_))),
        "{error}"
    );
    let error = fails(&|c| c.names = vec!["not a näme".to_owned()]);
    assert!(matches!(error, AgentError::Certificate(_)), "{error}");
    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::write(open.join("someone's"), b"").unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = fails(&|c| c.state_dir = open.clone());
    assert!(matches!(error, AgentError::NotPrivate(_)), "{error}");
}

#[test]
fn an_agent_that_is_not_there_is_offline() {
    let mut world = World::new();
    world.stop();
    let error = world.client.health().unwrap_err();
    assert!(
        matches!(error, ClientError::Unreachable { .. }),
        "{error:?}"
    );
    assert!(error.offline() && error.retry());
}
