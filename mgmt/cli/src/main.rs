//! `keelctl`: manages a Keelson host from a shell, over its HTTP API.

#![warn(unreachable_pub)]

mod cli;
mod console;
mod datastore;
mod failure;
mod host;
mod hosts;
mod login;
mod network;
mod output;
mod place;
mod progress;
mod session;
mod task;
mod terminal;
#[cfg(test)]
mod tests;
mod token;
mod vm;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command};
use failure::Failure;
use output::Output;
use session::Session;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has gone, as `| head` does: that is no failure of ours.
        Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("keelctl: {}", failure.text());
            ExitCode::from(failure.code())
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let output = Output::new(cli.output);
    if let Command::Completion { shell } = &cli.command {
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut Cli::command(), "keelctl", &mut script);
        return output::bytes(&script);
    }
    if let Command::Login(login) = &cli.command {
        return login::login(cli, login, &output);
    }
    let session = Session::open(cli)?;
    match &cli.command {
        Command::Login(_) | Command::Completion { .. } => Ok(()),
        Command::Logout => login::logout(&session),
        Command::Host { command } => host::run(&session.client, command.as_ref(), &output),
        Command::Network { command } => network::run(&session.client, command.as_ref(), &output),
        Command::Vm { command } => vm::run(&session.client, command, &output),
        Command::Datastore { command } => datastore::run(&session.client, command, &output),
        Command::Task { command } => task::run(&session.client, command, &output),
        Command::Logs(logs) => host::logs(&session.client, logs, &output),
        Command::Token { command } => token::run(&session.client, command, &output),
    }
}
