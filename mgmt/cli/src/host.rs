//! `host` and `logs`.

use std::time::Duration;

use keelson_api::client::{Client, LogQuery};
use keelson_api::{Cpu, CpuIdentity, Host, HostPower, HostPowerAction, HostUpdate, LogLine, PasswordChange};

use serde::Serialize;

use crate::cli::{Agent, HostCommand, HostPowerArgument, Logs};
use crate::failure::Failure;
use crate::output::{Output, bytes, clean, size, span};
use crate::terminal;

/// How often `logs -f` asks: the API has no stream of log lines.
const FOLLOW: Duration = Duration::from_secs(1);

pub(crate) fn run(client: &Client, command: Option<&HostCommand>, output: &Output) -> Result<(), Failure> {
    match command {
        None | Some(HostCommand::Show) => show(&client.get_host()?, output),
        Some(HostCommand::SetName { name }) => {
            let update = HostUpdate { hostname: Some(name.clone()), ..HostUpdate::default() };
            show(&client.update_host(&update)?, output)
        }
        Some(HostCommand::Cpu) => show_cpu(&client.get_host()?, output),
        Some(HostCommand::SetCpuBaseline { definition }) => {
            // The API removes it by an empty text.
            let baseline = if definition == "none" { String::new() } else { definition.clone() };
            let update = HostUpdate { cpu_baseline: Some(baseline), ..HostUpdate::default() };
            show_cpu(&client.update_host(&update)?, output)
        }
        Some(HostCommand::Power { action, guest_deadline }) => {
            let action = match action {
                HostPowerArgument::Off => HostPowerAction::PowerOff,
                HostPowerArgument::Reboot => HostPowerAction::Reboot,
            };
            // Its end cannot be waited for: the host goes away with it.
            let task = client.host_power(&HostPower { action, guest_deadline_s: *guest_deadline })?;
            crate::task::show(&task, output)
        }
        Some(HostCommand::RestartAgent { agent, no_wait }) => {
            let (name, ends_with_it) = match agent {
                Agent::Hostd => ("hostd", true),
                Agent::Netd => ("netd", false),
                Agent::Dcui => ("dcui", false),
            };
            crate::task::follow(client, client.restart_agent(name)?, *no_wait || ends_with_it, output)
        }
        Some(HostCommand::SetPassword { password_stdin }) => set_password(client, *password_stdin),
    }
}

fn set_password(client: &Client, from_stdin: bool) -> Result<(), Failure> {
    let set = client.identity()?.password_set;
    let (current, new) = if from_stdin {
        let current = set.then(terminal::line_from_stdin).transpose()?;
        (current, terminal::line_from_stdin()?)
    } else {
        let current = set.then(|| terminal::password("Present password: ")).transpose()?;
        let new = terminal::password("New password: ")?;
        if new != terminal::password("New password again: ")? {
            return Err(Failure::Usage("the two new passwords are not the same; nothing was changed".into()));
        }
        (current, new)
    };
    Ok(client.change_password(&PasswordChange { current, new })?)
}

/// What of the host is about what its processors can show.
#[derive(Serialize)]
struct HostCpu<'a> {
    cpu: &'a Cpu,
    identity: &'a Option<CpuIdentity>,
    baseline: &'a Option<String>,
}

fn show_cpu(host: &Host, output: &Output) -> Result<(), Failure> {
    let shown = HostCpu { cpu: &host.cpu, identity: &host.cpu_identity, baseline: &host.cpu_baseline };
    output.one(&shown, || {
        let mut lines = vec![
            ("CPU", host.cpu.model.clone()),
            ("Baseline", host.cpu_baseline.clone().unwrap_or_else(|| "none".into())),
        ];
        match &host.cpu_identity {
            None => lines.push(("Shows to guests", "nothing: this host has no KVM".into())),
            Some(cpu) => lines.extend([
                ("Vendor", cpu.vendor.clone()),
                ("Family, model, stepping", format!("{:#x}, {:#x}, {}", cpu.family, cpu.model, cpu.stepping)),
                ("Physical address", format!("{} bits", cpu.address_width)),
                (
                    "Best definition",
                    cpu.best_definition.clone().unwrap_or_else(|| "none: only `host`".into()),
                ),
                ("Definitions", cpu.definitions.join(", ")),
                ("Features", cpu.features.join(" ")),
            ]),
        }
        lines
    })
}

fn show(host: &Host, output: &Output) -> Result<(), Failure> {
    output.one(host, || {
        let identity = &host.identity;
        let yes = |b: bool| if b { "yes".to_owned() } else { "no".to_owned() };
        let reason = |b: bool, why: &Option<String>| match why {
            Some(why) if !b => format!("no: {why}"),
            _ => yes(b),
        };
        let mut lines = vec![
            ("Hostname", identity.hostname.clone()),
            ("Product", format!("{} {} (Linux {})", identity.product, identity.version, host.kernel)),
            ("Host id", identity.host_id.to_string()),
            ("Certificate SHA-256", identity.certificate_sha256.clone()),
            ("Up for", span(host.uptime_s)),
            ("Hardware", host.hardware.clone().unwrap_or_else(|| "unknown".into())),
            (
                "CPU",
                format!(
                    "{} ({} sockets, {} cores, {} threads)",
                    host.cpu.model, host.cpu.sockets, host.cpu.cores, host.cpu.threads
                ),
            ),
            (
                "Memory",
                format!(
                    "{}, {} available, {} of powered-on VMs",
                    size(host.memory.total_bytes),
                    size(host.memory.available_bytes),
                    size(host.memory.reserved_for_vms_bytes)
                ),
            ),
            ("Runs VMs", reason(host.kvm.available, &host.kvm.reason)),
            ("vMotion ready", reason(host.vmotion_ready, &host.vmotion_reason)),
            ("Settings kept", yes(host.persistent)),
            ("Password set", yes(identity.password_set)),
        ];
        for (n, condition) in host.conditions.iter().enumerate() {
            let name = if n == 0 { "Conditions" } else { "" };
            lines.push((name, format!("{} ({})\n{}", condition.message, condition.code, condition.remedy)));
        }
        let steps: Vec<String> =
            host.boot_timeline.iter().map(|s| format!("{:>7} ms  {}", s.at_ms, s.name)).collect();
        if !steps.is_empty() {
            lines.push(("Boot", steps.join("\n")));
        }
        lines
    })
}

/// The log; with `-f` until interrupted.
pub(crate) fn logs(client: &Client, logs: &Logs, output: &Output) -> Result<(), Failure> {
    let mut query = LogQuery { source: logs.source.clone(), ..LogQuery::default() };
    let mut lines = client.logs(&query)?;
    if let Some(wanted) = logs.lines {
        // What comes at once is the oldest part that is left; the newest is at its end.
        while let Some(last) = lines.last() {
            query.since = last.seq + 1;
            let more = client.logs(&query)?;
            if more.is_empty() {
                break;
            }
            lines.extend(more);
        }
        lines.drain(..lines.len().saturating_sub(wanted));
    }
    loop {
        print(&lines, output)?;
        let ended = lines.is_empty();
        if let Some(last) = lines.last() {
            query.since = last.seq + 1;
        }
        if ended {
            if !logs.follow {
                return Ok(());
            }
            std::thread::sleep(FOLLOW);
        }
        lines = client.logs(&query)?;
    }
}

fn print(lines: &[LogLine], output: &Output) -> Result<(), Failure> {
    let mut text = String::new();
    for line in lines {
        if output.is_json() {
            // A document a line, so that following works.
            text.push_str(
                &serde_json::to_string(line)
                    .map_err(|e| Failure::local("a log line cannot be written as JSON", e.into()))?,
            );
        } else {
            text.push_str(&format!(
                "{} {:<7} {}: {}",
                line.time,
                line.level,
                clean(&line.source),
                clean(&line.text)
            ));
        }
        text.push('\n');
    }
    bytes(text.as_bytes())
}
