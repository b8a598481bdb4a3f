//! Shutting the host down or restarting it, and restarting its management network.

use std::sync::Arc;
use std::time::Duration;

use keelson_api::{Fault, HostPower, HostPowerAction, Problem, Task};
use keelson_init_control::{PowerAction, Request, Tty, UnitId};
use keelson_netcfg_control::Client;

use crate::problems::argument;
use crate::services::Services;
use crate::tasks::Plan;

/// The longest time that guests may be given, in seconds.
const MAX_GUEST_DEADLINE_S: u32 = 3600;
/// How long the host agent waits before it has itself restarted.
const OWN_RESTART_DELAY: Duration = Duration::from_millis(300);

impl Services {
    /// Begins to shut the host down or to restart it. The task ends when init has taken over; the host agent itself ends soon after.
    pub fn host_power(&self, power: &HostPower, who: &str) -> Result<Task, Problem> {
        if power.guest_deadline_s > MAX_GUEST_DEADLINE_S {
            return Err(argument(
                "guest_deadline_s",
                format!("guests cannot be given {} s", power.guest_deadline_s),
                &format!("give 0 to {MAX_GUEST_DEADLINE_S}"),
            ));
        }
        let (name, action) = match power.action {
            HostPowerAction::Reboot => ("Reboot Host", PowerAction::Reboot),
            HostPowerAction::PowerOff => ("Shut Down Host", PowerAction::PowerOff),
        };
        let request = Request::Power { action, guest_deadline_ms: u64::from(power.guest_deadline_s) * 1000 };
        let units = Arc::clone(&self.units);
        let seconds = power.guest_deadline_s;
        log::warn!("\"{name}\" was asked for by {who}");
        self.tasks.start(Plan { name, target: "host".into(), who: who.into(), cancel: None }, move |_| {
            units.tell("the host could not be shut down", &request)?;
            Ok(format!("init is shutting down; guests have {seconds} s after their power button"))
        })
    }

    /// Begins to restart one of the host's daemons ("Restart Management Agents"). init kills it and starts it again: the daemons are
    /// made to be killed at any moment, so there is no gentler way that would be tested less.
    pub fn restart_agent(&self, name: &str, who: &str) -> Result<Task, Problem> {
        let kill = match name {
            "hostd" => vec![UnitId::Hostd],
            "netd" => vec![UnitId::Netd],
            "dcui" => vec![UnitId::Dcui(Tty::Tty1), UnitId::Dcui(Tty::TtyS0)],
            other => {
                return Err(Problem::new(Fault::NotFound, format!("there is no agent `{other}`"))
                    .remedy("hostd, netd and dcui can be restarted"));
            }
        };
        log::warn!("the restart of {name} was asked for by {who}");
        let units = Arc::clone(&self.units);
        let own = kill.contains(&UnitId::Hostd);
        self.tasks.start(
            Plan { name: "Restart Management Agent", target: name.into(), who: who.into(), cancel: None },
            move |_| {
                if own {
                    // The answer to whoever asked goes out first; nothing tells when it has arrived.
                    std::thread::sleep(OWN_RESTART_DELAY);
                }
                let (mut killed, mut failed) = (0, None);
                for unit in kill {
                    match units.tell("the agent could not be restarted", &Request::Kill { unit }) {
                        Ok(()) => killed += 1,
                        Err(e) => failed = Some(e),
                    }
                }
                // A host has a console on one line or on two.
                match failed {
                    Some(e) if killed == 0 => Err(e),
                    _ => Ok("init has ended it and starts it again".into()),
                }
            },
        )
    }

    /// Begins to restart the management network.
    pub fn restart_network(&self, who: &str) -> Result<Task, Problem> {
        let netd = Arc::clone(&self.netd);
        self.tasks.start(
            Plan {
                name: "Restart Management Network",
                target: "network".into(),
                who: who.into(),
                cancel: None,
            },
            move |_| {
                netd.ask("the management network could not be restarted", Client::restart)?;
                Ok("the management network was restarted".into())
            },
        )
    }
}
