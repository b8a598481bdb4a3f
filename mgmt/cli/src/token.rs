//! `token`.

use keelson_api::NewToken;
use keelson_api::client::Client;

use crate::cli::TokenCommand;
use crate::failure::Failure;
use crate::output::Output;

const DAY_S: u64 = 86_400;

pub(crate) fn run(client: &Client, command: &TokenCommand, output: &Output) -> Result<(), Failure> {
    let until = |expires: Option<String>| expires.unwrap_or_else(|| "never".into());
    match command {
        TokenCommand::Create { name, days } => {
            let issued = client.create_token(&NewToken {
                name: name.clone(),
                expires_in_s: days.map(|d| u64::from(d) * DAY_S),
            })?;
            output.one(&issued, || {
                vec![
                    ("Token", issued.token.clone()),
                    ("Name", issued.about.name.clone()),
                    ("Id", issued.about.id.to_string()),
                    ("Ends", until(issued.about.expires.map(|t| t.to_string()))),
                    ("Note", "it is not shown again".into()),
                ]
            })
        }
        TokenCommand::List => output.list(&client.tokens()?, &["name", "issued", "ends", "id"], |t| {
            vec![
                t.name.clone(),
                t.created.to_string(),
                until(t.expires.map(|t| t.to_string())),
                t.id.to_string(),
            ]
        }),
        TokenCommand::Delete { id } => Ok(client.delete_token(*id)?),
    }
}
