//! `vm`.

use std::io::Read;

use keelson_api::client::Client;
use keelson_api::{EpochCause, OwnerState, PowerState, Vm, VmCpu, VmPowerAction, VmSpec, VmUpdate};
use uuid::Uuid;

use crate::cli::{Create, Set, VmAndWait, VmCommand};
use crate::failure::Failure;
use crate::output::{Output, size, span};
use crate::{console, task};

pub(crate) fn run(client: &Client, command: &VmCommand, output: &Output) -> Result<(), Failure> {
    let power = |vm: &VmAndWait, action| {
        let id = find(client, &vm.vm)?.id;
        task::follow(client, client.vm_power(id, action)?, vm.no_wait, output)
    };
    match command {
        VmCommand::List => {
            output.list(&client.vms()?, &["name", "state", "vCPUs", "memory", "directory", "id"], |vm| {
                vec![
                    vm.name.clone(),
                    state(vm.power_state).into(),
                    vm.vcpus.to_string(),
                    size(vm.memory_mib * 1024 * 1024),
                    vm.directory.clone(),
                    vm.id.to_string(),
                ]
            })
        }
        VmCommand::Show { vm } => show(&find(client, vm)?, output),
        VmCommand::Create(create) => show(&client.create_vm(&spec(create)?)?, output),
        VmCommand::Start { vm, force: false } => power(vm, VmPowerAction::On),
        VmCommand::Start { vm, force: true } => {
            let id = find(client, &vm.vm)?.id;
            task::follow(client, client.vm_power_on_forced(id)?, vm.no_wait, output)
        }
        VmCommand::History { vm } => {
            let epochs = client.vm_history(find(client, vm)?.id)?;
            output.list(&epochs, &["epoch", "state", "host", "cause", "when", "note"], |epoch| {
                vec![
                    epoch.epoch.to_string(),
                    owner_state(epoch.state).into(),
                    epoch.hostname.clone().unwrap_or_default(),
                    epoch.cause.map_or("", cause).into(),
                    epoch.when.map(|when| when.to_string()).unwrap_or_default(),
                    epoch.note.clone().unwrap_or_default(),
                ]
            })
        }
        VmCommand::Set(set) => {
            let vm = find(client, &set.vm)?;
            show(&client.update_vm(vm.id, &update(set, &vm)?)?, output)
        }
        VmCommand::Stop { vm, force } => {
            power(vm, if *force { VmPowerAction::Off } else { VmPowerAction::Shutdown })
        }
        VmCommand::Reset(vm) => power(vm, VmPowerAction::Reset),
        VmCommand::Pause(vm) => power(vm, VmPowerAction::Pause),
        VmCommand::Resume(vm) => power(vm, VmPowerAction::Resume),
        VmCommand::Console { vm, log } => console::run(client, &find(client, vm)?, *log),
        VmCommand::Delete(vm) => {
            let id = find(client, &vm.vm)?.id;
            task::follow(client, client.delete_vm(id)?, vm.no_wait, output)
        }
    }
}

/// A VM by its name or id. A name comes first: one may look like an id.
pub(crate) fn find(client: &Client, name: &str) -> Result<Vm, Failure> {
    let mut vms = client.vms()?;
    let id = Uuid::parse_str(name).ok();
    let at =
        vms.iter().position(|vm| vm.name == name).or_else(|| vms.iter().position(|vm| Some(vm.id) == id));
    match at {
        Some(at) => Ok(vms.swap_remove(at)),
        None => {
            let mut names: Vec<String> = vms.into_iter().map(|vm| vm.name).collect();
            names.sort();
            let known = if names.is_empty() {
                "there are none".to_owned()
            } else {
                format!("there are: {}", names.join(", "))
            };
            Err(Failure::NotFound(format!("{} has no VM named `{name}`; {known}", client.host())))
        }
    }
}

fn state(state: PowerState) -> &'static str {
    match state {
        PowerState::PoweredOff => "off",
        PowerState::PoweredOn => "on",
        PowerState::Paused => "paused",
        PowerState::Elsewhere => "elsewhere",
    }
}

fn owner_state(state: OwnerState) -> &'static str {
    match state {
        OwnerState::Running => "running",
        OwnerState::Suspended => "suspended",
        OwnerState::Off => "off",
        OwnerState::Unreadable => "unreadable",
    }
}

fn cause(cause: EpochCause) -> &'static str {
    match cause {
        EpochCause::PowerOn => "power on",
        EpochCause::PowerOff => "power off",
        EpochCause::Suspend => "suspend",
        EpochCause::Move => "move",
        EpochCause::GiveBack => "give back",
        EpochCause::Forced => "forced",
    }
}

/// The API's specification of what the command line says.
pub(crate) fn spec(create: &Create) -> Result<VmSpec, Failure> {
    if let Some(file) = &create.file {
        let mut text = String::new();
        let read = if file.as_os_str() == "-" {
            std::io::stdin().read_to_string(&mut text).map(drop)
        } else {
            std::fs::File::open(file).and_then(|mut f| f.read_to_string(&mut text)).map(drop)
        };
        read.map_err(|e| Failure::local(format!("{} cannot be read", file.display()), e))?;
        return serde_json::from_str(&text)
            .map_err(|e| Failure::Usage(format!("{} is no VM specification: {e}", file.display())));
    }
    let file = |place: &crate::place::Place| place.file().map(ToString::to_string).map_err(Failure::Usage);
    // The parser has made sure of both.
    let missing = |what: &str| Failure::Usage(format!("a VM needs {what}"));
    Ok(VmSpec {
        name: create.name.clone().ok_or_else(|| missing("a name"))?,
        datastore: create.datastore.clone(),
        vcpus: create.vcpus,
        memory_mib: create.memory,
        cpu: create.cpu.applied(&VmCpu::default()),
        kernel: file(create.kernel.as_ref().ok_or_else(|| missing("--kernel"))?)?,
        initramfs: create.initramfs.as_ref().map(file).transpose()?,
        cmdline: create.cmdline.clone(),
        disks: create.disks.clone(),
        nics: create.nics.clone(),
    })
}

fn update(set: &Set, vm: &Vm) -> Result<VmUpdate, Failure> {
    let file = |place: &crate::place::Place| place.file().map(ToString::to_string).map_err(Failure::Usage);
    let initramfs = if set.no_initramfs {
        // The API removes it by an empty text.
        Some(String::new())
    } else {
        set.initramfs.as_ref().map(file).transpose()?
    };
    Ok(VmUpdate {
        vcpus: set.vcpus,
        memory_mib: set.memory,
        cpu: (!set.cpu.is_empty()).then(|| set.cpu.applied(&vm.cpu)),
        kernel: set.kernel.as_ref().map(file).transpose()?,
        initramfs,
        cmdline: set.cmdline.clone(),
        nics: (set.no_nics || !set.nics.is_empty()).then(|| set.nics.clone()),
    })
}

/// The processor in a line for each thing that is said of it.
fn cpu(cpu: &VmCpu) -> String {
    let mut lines = vec![cpu.definition.clone().unwrap_or_else(|| "host".into())];
    if !cpu.masks.is_empty() {
        lines.push(format!("without {}", cpu.masks.join(", ")));
    }
    lines.extend(cpu.cores_per_socket.map(|n| format!("{n} cores per socket")));
    lines.extend(cpu.threads_per_core.map(|n| format!("{n} threads per core")));
    if !cpu.affinity.is_empty() {
        lines.push(format!("on host processors {}", cpu.affinity.join(" and ")));
    }
    lines.extend(cpu.shares.map(|n| format!("{n} shares")));
    lines.extend(cpu.limit_percent.map(|n| format!("at most {n} % of one host processor")));
    lines.extend(cpu.reservation_percent.map(|n| format!("{n} % of one host processor reserved")));
    lines.join("\n")
}

fn show(vm: &Vm, output: &Output) -> Result<(), Failure> {
    output.one(vm, || {
        let mut lines = vec![
            ("Name", vm.name.clone()),
            ("Id", vm.id.to_string()),
            ("State", state(vm.power_state).into()),
            ("Directory", vm.directory.clone()),
            ("Hardware version", vm.hardware_version.to_string()),
            ("vCPUs", vm.vcpus.to_string()),
            ("Memory", size(vm.memory_mib * 1024 * 1024)),
            ("CPU", cpu(&vm.cpu)),
            ("Kernel", vm.kernel.clone()),
            ("Command line", vm.cmdline.clone()),
        ];
        lines.extend(vm.initramfs.clone().map(|i| ("Initramfs", i)));
        for (n, disk) in vm.disks.iter().enumerate() {
            let read_only = if disk.read_only { ", read-only" } else { "" };
            lines.push((
                if n == 0 { "Disks" } else { "" },
                format!("{} ({}{read_only})", disk.path, size(disk.size_bytes)),
            ));
        }
        for (n, nic) in vm.nics.iter().enumerate() {
            lines.push((
                if n == 0 { "Network adapters" } else { "" },
                format!("{} ({})", nic.port_group, nic.mac),
            ));
        }
        if let Some(owner) = &vm.owner {
            let host = owner.hostname.as_deref().unwrap_or("unknown");
            lines.push(("Owner", format!("{host}, {} (epoch {})", owner_state(owner.state), owner.epoch)));
        }
        lines.extend(vm.uptime_s.map(|s| ("Up for", span(s))));
        lines.extend(vm.memory_touched_mib.map(|m| ("Memory touched", size(m * 1024 * 1024))));
        lines.extend(vm.last_exit.clone().map(|e| ("Last run", e)));
        lines
    })
}
