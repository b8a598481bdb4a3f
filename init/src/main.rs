//! PID 1 of a Keelson host, and of a light host.

fn main() -> std::process::ExitCode {
    keelson_init::run()
}
