//! Measures, and prints one line `name value unit` a figure: `keelson-bench boot`. What it is doing goes to standard error.

use keelson_lab::bench;

fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let measured = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["boot"] => bench::boot(),
        _ => {
            eprintln!("which bench? keelson-bench boot");
            return std::process::ExitCode::from(2);
        }
    };
    match measured {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("keelson-bench: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
