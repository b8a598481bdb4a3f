//! The demo: a server powers on, is set up at its console, and runs a virtual machine, watched from outside all along.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keelson_api::client::Client;
use keelson_api::{HostPower, HostPowerAction, VmPowerAction};
use keelson_lab::console::Console;
use keelson_lab::dhcp_server::DhcpServer;
use keelson_lab::net::LabNet;
use keelson_lab::operator::{self, GuestConsole};
use keelson_lab::server::{BootFrom, PATIENCE, Server, ServerOptions, accelerator};
use keelson_lab::{artefacts, forward, guest};

const PASSWORD: &str = "Keelson-demo-1";
const FORWARDED: &str = "127.0.0.1:8443";

fn main() -> std::process::ExitCode {
    let keep = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--keep") => true,
        Some(other) => {
            eprintln!("unknown word {other}; ./scripts/demo [--keep]");
            return std::process::ExitCode::from(2);
        }
    };
    match demo(keep) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("\nThe demo failed: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// Says which step begins, with the seconds since power-on.
struct Steps(Instant);

impl Steps {
    fn say(&self, text: &str) {
        println!("\n[{:6.1} s] {text}", self.0.elapsed().as_secs_f64());
    }
}

fn show_screen(console: &Console) {
    println!("  +{}+", "-".repeat(80));
    let screen = console.screen();
    for line in screen.lines().chain(std::iter::repeat("")).take(24) {
        println!("  |{line:80}|");
    }
    println!("  +{}+", "-".repeat(80));
}

fn demo(keep: bool) -> Result<()> {
    // Bound before the lab's network is entered: it stays in the network that this machine's user is in.
    let outside = keep
        .then(|| std::net::TcpListener::bind(FORWARDED).with_context(|| format!("{FORWARDED} is taken")))
        .transpose()?;
    let net = LabNet::enter()?;
    let _dhcp = DhcpServer::start("lab0", Default::default())?;
    let image = std::fs::metadata(artefacts::image("keelson.efi")?)?.len();
    println!(
        "An emulated server: 2 processors, 2 GiB, UEFI, one disk with the image, one NIC. Runs by {}.",
        accelerator(true).1
    );
    let mut options = ServerOptions::new("demo", BootFrom::Disk);
    options.echo = std::env::var_os("KEELSON_ECHO").is_some();
    let server = Server::start(&net, &options)?;
    let steps = Steps(server.power_on);
    steps.say("power is on; the firmware boots the image");
    let address = operator::address_on_screen(&server.console, PATIENCE)?.to_string();
    let pin = operator::wait_api(&address, PATIENCE)?;
    let api_ready = server.power_on.elapsed();
    // The screen breaks the fingerprint over lines; its first pairs tell that it is painted, and that it is this host's.
    server.console.wait_screen(pin.to_string().get(..23).unwrap_or_default(), PATIENCE)?;
    steps.say("the host is up; this is its console:");
    show_screen(&server.console);

    steps.say("F2 at the console: root gets a password");
    operator::first_password(&server.console, PASSWORD, PATIENCE)?;
    show_screen(&server.console);
    let client = operator::log_in(&address, pin, PASSWORD)?;
    let host = client.get_host()?;
    println!("\n  boot timeline (milliseconds since the kernel started):");
    for step in &host.boot_timeline {
        println!("  {:8}  {}", step.at_ms, step.name);
    }
    println!(
        "  {} {} on {}; KVM: {}",
        host.identity.product,
        host.identity.version,
        host.kernel,
        if host.kvm.available { "yes" } else { "no" }
    );
    for condition in &host.conditions {
        println!("  note: {} ({})", condition.message, condition.remedy);
    }

    steps.say("uploading a stock Debian kernel and an initramfs");
    let mut shown = 0;
    operator::upload_guest(&client, |done, total| {
        let percent = done * 100 / total.max(1);
        if percent >= shown + 20 {
            shown = percent;
            println!("  {percent:3} %");
        }
    })?;
    let vm = client.create_vm(&operator::guest_spec("demo", "dhcp"))?;
    steps.say(&format!(
        "virtual machine `{}` ({}) created; powering it on; its serial console:",
        vm.name, vm.id
    ));
    let called = Instant::now();
    let task = client.vm_power(vm.id, VmPowerAction::On)?;
    operator::finish(&client, task)?;
    let mut first = None;
    let (sender, first_byte) = std::sync::mpsc::channel();
    let mut console = GuestConsole::open(&client, &vm, move |bytes| {
        if first.is_none() && !bytes.is_empty() {
            first = Some(());
            let _ = sender.send(called.elapsed());
        }
        let mut out = std::io::stdout();
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    })?;
    console.wait(guest::READY, PATIENCE)?;
    let guest_ready = called.elapsed();
    let guest_first = first_byte.try_recv().unwrap_or(guest_ready);
    steps.say("typing `echo $((6*7))` into the guest:");
    client.console_input(vm.id, b"echo answer=$((6*7))\r")?;
    console.wait("answer=42", PATIENCE)?;
    let guest_address = console.address(PATIENCE)?;
    let page = operator::fetch_page(guest_address, PATIENCE)?;
    steps.say(&format!(
        "from outside the server, through vmnic0 and vSwitch0: http://{guest_address}/ says `{page}`"
    ));

    if let Some(outside) = outside {
        return stay(&steps, &server, &client, outside, &address, &pin.to_string());
    }
    steps.say("shutting the guest down by its power button");
    let task = client.vm_power(vm.id, VmPowerAction::Shutdown)?;
    operator::finish(&client, task)?;
    let vm = client.vm(vm.id)?;
    println!("  power state {:?}: {}", vm.power_state, vm.last_exit.unwrap_or_default());
    steps.say("shutting the host down");
    client.host_power(&HostPower { action: HostPowerAction::PowerOff, guest_deadline_s: 30 })?;
    let status = server.wait_off(PATIENCE)?;
    if !status.success() {
        bail!("the server's emulator ended with {status}");
    }
    steps.say("the server is off");
    println!("\nSummary");
    println!("  image size                  {:8.1} MiB", image as f64 / f64::from(1 << 20));
    println!("  power-on to API ready       {:8.1} s", api_ready.as_secs_f64());
    println!("  API call to guest's first line {:5.1} s", guest_first.as_secs_f64());
    println!("  API call to guest ready     {:8.1} s", guest_ready.as_secs_f64());
    Ok(())
}

fn stay(
    steps: &Steps,
    server: &Server,
    client: &Client,
    outside: std::net::TcpListener,
    address: &str,
    pin: &str,
) -> Result<()> {
    let keelctl = artefacts::binary("keelctl")?;
    let keelctl = keelctl.display();
    let socket = forward::console(&server.console, server.directory())?;
    steps.say("the host stays up until you press Ctrl-C. Reach it so:");
    println!("  URL            https://{FORWARDED}   (user root, password {PASSWORD})");
    println!("  fingerprint    {pin}");
    println!("  command line   {keelctl} login {FORWARDED} --fingerprint {pin}");
    println!("                 {keelctl} host; {keelctl} vm list; {keelctl} vm console demo");
    println!(
        "  host console   socat -,raw,echo=0,escape=0x1d UNIX-CONNECT:{}   (Ctrl-] leaves)",
        socket.display()
    );
    let _ = client;
    forward::tcp(&outside, (address.parse::<std::net::Ipv4Addr>()?, 443).into());
    server.wait_off(Duration::MAX).map(|_| ())
}
