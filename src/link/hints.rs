//! What the system knows about the network and its power, behind a trait: Linux here, another system
//! is another implementation, and tests bring their own.

#[cfg(target_os = "linux")]
pub mod linux;
#[cfg(debug_assertions)]
mod script;

/// What the system says. `None` and empty: it does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Whether the connection is paid by volume.
    pub metered: Option<bool>,
    /// Whether the machine runs on its battery.
    pub on_battery: Option<bool>,
    /// Names of the active connections (the WLAN's name, usually); `None`: not known.
    pub networks: Option<Vec<String>>,
    /// Rises whenever a network device, address or route changed: time to look whether the share is
    /// there.
    pub changes: u64,
}

/// Where hints come from.
pub trait NetworkHints: Send + Sync {
    /// What is known now. Answers from memory.
    fn look(&self) -> Hints;

    /// Puts what a test plays in place of what is seen (debug builds alone).
    #[cfg(debug_assertions)]
    fn play(&self, seen: &mut crate::policy::Seen) {
        let _ = seen;
    }

    /// The minimum stay that a test asks for (debug builds alone).
    #[cfg(debug_assertions)]
    fn stay(&self) -> Option<std::time::Duration> {
        None
    }
}

/// A system that says nothing.
pub struct NoHints;

impl NetworkHints for NoHints {
    fn look(&self) -> Hints {
        Hints::default()
    }
}

/// The hints of this system.
#[must_use]
pub fn of_this_system() -> Box<dyn NetworkHints> {
    #[cfg(debug_assertions)]
    if let Some(path) = std::env::var_os("PSTSYNCD_TEST_DAY") {
        return Box::new(script::Script::new(path.into()));
    }
    #[cfg(target_os = "linux")]
    {
        Box::new(linux::LinuxHints::start())
    }
    #[cfg(not(target_os = "linux"))]
    {
        Box::new(NoHints)
    }
}
