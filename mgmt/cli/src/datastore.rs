//! `datastore`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use keelson_api::FileKind;
use keelson_api::client::Client;

use crate::cli::DatastoreCommand;
use crate::failure::Failure;
use crate::output::{Output, size};
use crate::place::Place;
use crate::progress::Progress;

pub(crate) fn run(client: &Client, command: &DatastoreCommand, output: &Output) -> Result<(), Failure> {
    match command {
        DatastoreCommand::List => {
            output.list(&client.datastores()?, &["name", "kind", "capacity", "free", "accessible"], |d| {
                vec![
                    d.name.clone(),
                    d.kind.clone(),
                    size(d.capacity_bytes),
                    size(d.free_bytes),
                    if d.accessible { "yes".into() } else { "no".into() },
                ]
            })
        }
        DatastoreCommand::Ls { place } => output.list(
            &client.files(&place.datastore, place.path.trim_end_matches('/'))?,
            &["path", "kind", "size", "allocated", "modified"],
            |f| {
                let kind = if f.kind == FileKind::Directory { "directory" } else { "file" };
                vec![
                    f.path.clone(),
                    kind.into(),
                    size(f.size_bytes),
                    size(f.allocated_bytes),
                    f.modified.to_string(),
                ]
            },
        ),
        DatastoreCommand::Upload { file, place } => upload(client, file, place, output),
        DatastoreCommand::Download { place, file } => {
            download(client, place.file().map_err(Failure::Usage)?, file.as_deref())
        }
        DatastoreCommand::Rm { place } => {
            let place = place.file().map_err(Failure::Usage)?;
            Ok(client.delete_file(&place.datastore, &place.path)?)
        }
    }
}

fn upload(client: &Client, file: &Path, place: &Place, output: &Output) -> Result<(), Failure> {
    let unreadable = |e| Failure::local(format!("{} cannot be read", file.display()), e);
    let mut place = place.clone();
    let name = file.file_name().and_then(|n| n.to_str());
    if let (true, Some(name)) = (place.path.is_empty() || place.path.ends_with('/'), name) {
        place.path.push_str(name);
    }
    let place = place.file().map_err(Failure::Usage)?;
    let mut source = File::open(file).map_err(unreadable)?;
    let about = source.metadata().map_err(unreadable)?;
    if !about.is_file() {
        return Err(Failure::Usage(format!(
            "{} is no regular file; only those have a length that can be declared",
            file.display()
        )));
    }
    let mut progress = Progress::start();
    let made = client.upload(&place.datastore, &place.path, &mut source, about.len(), &mut |done| {
        progress.bytes(place.name(), done, Some(about.len()))
    });
    progress.end();
    let entry = made?;
    output.one(&entry, || vec![("File", entry.path.clone()), ("Size", size(entry.size_bytes))])
}

fn download(client: &Client, place: &Place, file: Option<&Path>) -> Result<(), Failure> {
    let file = file.map_or_else(|| PathBuf::from(place.name()), Path::to_owned);
    let mut progress = Progress::start();
    if file.as_os_str() == "-" {
        let mut out = std::io::stdout().lock();
        client.download_to(&place.datastore, &place.path, &mut out, &mut |_, _| ())?;
        return out.flush().map_err(|e| Failure::local("standard output cannot be written", e));
    }
    let file = if file.is_dir() { file.join(place.name()) } else { file };
    // Under another name until it is whole, so that a cut download is never taken for the file.
    let mut part = file.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let failed = |e| Failure::local(format!("{} cannot be written", file.display()), e);
    let mut target = BufWriter::new(File::create(&part).map_err(failed)?);
    let got = client.download_to(&place.datastore, &place.path, &mut target, &mut |done, whole| {
        progress.bytes(place.name(), done, whole)
    });
    progress.end();
    let finished = got
        .map_err(Failure::from)
        .and_then(|_| target.flush().and_then(|()| std::fs::rename(&part, &file)).map_err(failed));
    if finished.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    finished
}
