//! A machine of its own for tests of the command line: no drives, no state but in its directory.
#![allow(dead_code)]

use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use assert_cmd::Command;

/// See the head of this file.
pub struct Machine {
    pub temp: tempfile::TempDir,
}

impl Machine {
    pub fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        for dir in ["run", "share", "mnt"] {
            std::fs::create_dir(temp.path().join(dir)).unwrap();
        }
        std::fs::set_permissions(temp.path().join("run"), PermissionsExt::from_mode(0o700))
            .unwrap();
        Self { temp }
    }

    pub fn path(&self, name: &str) -> String {
        self.temp.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn run(&self, args: &[&str]) -> Output {
        Command::cargo_bin("pstsyncd")
            .unwrap()
            .args(args)
            .envs(self.environment())
            .env_remove("RUST_LOG")
            .current_dir(self.temp.path())
            .output()
            .unwrap()
    }

    /// What makes it a machine of its own.
    pub fn environment(&self) -> [(&'static str, std::path::PathBuf); 3] {
        [
            ("PSTSYNCD_RUNTIME_DIR", self.temp.path().join("run")),
            ("XDG_STATE_HOME", self.temp.path().join("state")),
            ("HOME", self.temp.path().to_owned()),
        ]
    }

    /// Runs it as a person and as a program, and checks that both are told the same failure:
    /// this exit code, this error code, one sentence and one next step, and nothing on standard output.
    #[track_caller]
    pub fn refused(&self, args: &[&str], exit: i32, code: &str) -> serde_json::Value {
        let human = self.run(args);
        let text = String::from_utf8(human.stderr).unwrap();
        assert_eq!(human.status.code(), Some(exit), "{text}");
        let told: Vec<_> = text
            .lines()
            .skip_while(|l| !l.starts_with("error: "))
            .collect();
        assert_eq!(told.len(), 2, "{text}");
        assert!(told[1].starts_with(" next: "), "{text}");
        assert!(human.stdout.is_empty());
        let json = self.run(&[args, &["--json"]].concat());
        assert_eq!(json.status.code(), Some(exit));
        assert!(json.stdout.is_empty());
        let text = String::from_utf8(json.stderr).unwrap();
        let error: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let error = error["error"].clone();
        assert_eq!(error["code"], code, "{text}");
        assert_eq!(
            told[0],
            format!("error: {}", error["message"].as_str().unwrap())
        );
        assert_eq!(
            told[1],
            format!(" next: {}", error["next"].as_str().unwrap())
        );
        error
    }

    /// What the commands left in the machine's own directory.
    pub fn left(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.temp.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}
