//! Signing in with Kerberos tickets: a key distribution centre and smbd of the test's own, `kinit`, and
//! the drive's share. No password of the account is known to smbd.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::smbd::{Options, Smbd};
use common::{installed, port::Port, skip};
use vfs::Share;
use vfs::share::smb::{Retry, SmbAddress, SmbConfig, SmbError, SmbShare, Tickets};

const REALM: &str = "PSTSYNCD.TEST";

/// A realm of its own, on a port of the loopback.
struct Realm {
    dir: tempfile::TempDir,
    _port: Port,
    kdc: Child,
    tools: Vec<PathBuf>,
}

impl Realm {
    /// `None` (and the test counts as skipped) where there is no MIT KDC.
    fn new() -> Option<Self> {
        let names = ["krb5kdc", "kdb5_util", "kadmin.local", "kinit", "kvno"];
        let mut tools = Vec::new();
        for name in names {
            let sbin = Path::new("/usr/sbin").join(name);
            let tool = installed(name).or(Some(sbin).filter(|p| p.is_file()));
            let Some(tool) = tool else {
                skip::skipped("kdc", "no MIT KDC (krb5-kdc, krb5-admin-server, krb5-user)");
                return None;
            };
            tools.push(tool);
        }
        let dir = tempfile::tempdir().unwrap();
        let port = Port::take();
        let at = dir.path().display();
        std::fs::write(
            dir.path().join("krb5.conf"),
            format!(
                "[libdefaults]\ndefault_realm = {REALM}\ndns_lookup_kdc = false\nrdns = false\n\
                 dns_canonicalize_hostname = false\n[realms]\n{REALM} = {{\n\
                 kdc = 127.0.0.1:{0}\n}}\n[logging]\nkdc = FILE:{at}/kdc.log\n",
                port.number()
            ),
        )
        .unwrap();
        std::fs::write(
            dir.path().join("kdc.conf"),
            format!(
                "[kdcdefaults]\nkdc_listen = 127.0.0.1:{0}\nkdc_tcp_listen = 127.0.0.1:{0}\n[realms]\n\
                 {REALM} = {{\ndatabase_name = {at}/principal\nkey_stash_file = {at}/stash\n\
                 max_life = 1d\ndisable_pac = true\n}}\n",
                port.number()
            ),
        )
        .unwrap();
        let mut realm = Self {
            // Replaced below: there is no realm before its database.
            kdc: Command::new("true").spawn().unwrap(),
            dir,
            _port: port,
            tools,
        };
        let stash = ["create", "-s", "-r", REALM, "-P", "master"];
        assert!(realm.run("kdb5_util", &stash, ""));
        for query in [
            "addprinc -pw secret user".to_owned(),
            "addprinc -pw secret other".to_owned(),
            "addprinc -randkey cifs/localhost".to_owned(),
            format!("ktadd -k {} cifs/localhost", realm.path("keytab")),
        ] {
            let query = query.replace("user", &user());
            assert!(
                realm.run("kadmin.local", &["-r", REALM, "-q", &query], ""),
                "{query}"
            );
        }
        realm.start();
        Some(realm)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn command(&self, name: &str) -> Command {
        let tool = self.tools.iter().find(|t| t.ends_with(name)).unwrap();
        let mut command = Command::new(tool);
        command
            .env("KRB5_CONFIG", self.path("krb5.conf"))
            .env("KRB5_KDC_PROFILE", self.path("kdc.conf"))
            .env("KRB5CCNAME", self.path("cc"));
        command
    }

    fn run(&self, name: &str, args: &[&str], input: &str) -> bool {
        use std::io::Write;
        let mut child = self
            .command(name)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // One that fails before it asks takes nothing.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait().unwrap().success()
    }

    fn start(&mut self) {
        self.stop();
        self.kdc = self
            .command("krb5kdc")
            .arg("-n")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        while !self.kinit(&user(), "1h") {
            assert!(Instant::now() < end, "the KDC does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn stop(&mut self) {
        let _ = self.kdc.kill();
        let _ = self.kdc.wait();
    }

    fn kinit(&self, name: &str, life: &str) -> bool {
        self.run("kinit", &["-l", life, name], "secret\n")
    }

    fn tickets(&self) -> Tickets {
        Tickets {
            cache: self.path("cc").into(),
            config: self.path("krb5.conf").into(),
        }
    }
}

impl Drop for Realm {
    fn drop(&mut self) {
        self.stop();
    }
}

fn user() -> String {
    let out = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// A server that knows the realm's tickets by their keytab.
fn server(realm: &Realm, root: &Path, share: &str) -> Option<Smbd> {
    let global = format!(
        "realm = {REALM}\nkerberos method = dedicated keytab\ndedicated keytab file = {}\n",
        realm.path("keytab")
    );
    let options = Options {
        global: &global,
        share,
        host: None,
    };
    Smbd::start(root, options)
}

fn config(realm: &Realm, server: &Smbd, user: &str) -> SmbConfig {
    let text = format!("smb://{user}@localhost:{}/share", server.port());
    SmbConfig::new(SmbAddress::parse(&text).unwrap(), realm.tickets())
}

fn refused(config: SmbConfig) -> (String, Retry) {
    let e = SmbShare::new(config).unwrap().connect().unwrap_err();
    (e.to_string(), SmbError::of(&e).unwrap().retry)
}

#[test]
fn a_ticket_is_as_good_as_a_password() {
    let Some(mut realm) = Realm::new() else {
        return;
    };
    for (options, name) in [("", "signed"), ("smb encrypt = required", "encrypted")] {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a"), b"with a ticket").unwrap();
        let Some(server) = server(&realm, root.path(), options) else {
            return;
        };
        // A ticket-granting ticket: one for the server is asked of the KDC.
        assert!(realm.kinit(&user(), "1h"));
        let share = SmbShare::new(config(&realm, &server, &user())).unwrap();
        share
            .connect()
            .unwrap_or_else(|e| panic!("{name}: {e}\n{}", server.log()));
        let file = share.open("a", true).unwrap();
        let mut data = [0; 13];
        assert_eq!(file.read_at(0, &mut data).unwrap(), 13);
        assert_eq!(&data, b"with a ticket");
        file.write_all_at(0, b"WITH").unwrap();
        file.sync().unwrap();
        assert_eq!(
            std::fs::read(root.path().join("a")).unwrap(),
            b"WITH a ticket"
        );
        // With the server's own ticket in the cache nobody else is needed.
        assert!(realm.run("kvno", &["cifs/localhost"], ""));
        realm.stop();
        let share = SmbShare::new(config(&realm, &server, &user())).unwrap();
        share
            .connect()
            .unwrap_or_else(|e| panic!("{name}, cached: {e}"));
        realm.start();
    }
}

#[test]
fn tickets_that_are_not_there_are_said_and_found_later() {
    let Some(mut realm) = Realm::new() else {
        return;
    };
    let root = tempfile::tempdir().unwrap();
    let Some(server) = server(&realm, root.path(), "") else {
        return;
    };
    let of = |user: &str| config(&realm, &server, user);
    std::fs::remove_file(realm.path("cc")).unwrap();
    let (said, retry) = refused(of(&user()));
    assert!(said.contains("kinit") && retry == Retry::Soon, "{said}");
    // The very share that was refused gets in when the ticket is there.
    let share = SmbShare::new(of(&user())).unwrap();
    share.connect().unwrap_err();
    assert!(realm.kinit(&user(), "1h"));
    let end = Instant::now() + Duration::from_secs(30);
    while let Err(e) = share.connect() {
        assert!(Instant::now() < end, "{e}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(realm.kinit("other", "1h"));
    let (said, _) = refused(of(&user()));
    assert!(said.contains(&format!("those of other@{REALM}")), "{said}");
    assert!(realm.kinit(&user(), "1s"));
    std::thread::sleep(Duration::from_secs(2));
    let (said, retry) = refused(of(&user()));
    assert!(said.contains("expired") && retry == Retry::Soon, "{said}");
    // A KDC that is away, and a ticket for nothing but it.
    assert!(realm.kinit(&user(), "1h"));
    realm.stop();
    let mut config = config(&realm, &server, &user());
    config.silence = Duration::from_secs(4);
    let begun = Instant::now();
    let (said, retry) = refused(config);
    assert!(retry != Retry::Never, "{said}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{said}");
}
