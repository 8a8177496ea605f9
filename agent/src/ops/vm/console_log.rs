//! `vm/read_console_log`: a piece of what the guest wrote to its serial line.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use shared::api::vm::ConsoleLog;
use shared::wire::vm::ReadConsoleLog;
use shared::{Error, Result};

use crate::app::App;
use crate::cloud_init::vm_dir;
use crate::storage::FileError;
use crate::task::TaskCx;

/// Most bytes of one answer.
const MAX: u64 = 256 * 1024;

/// Reads a piece of the serial log.
///
/// # Errors
/// `not_found` when the VM has never been on this host.
pub async fn read_console_log(app: &Arc<App>, _cx: &TaskCx, command: ReadConsoleLog) -> Result<ConsoleLog> {
    let dir = vm_dir(&app.config.agent.data_dir, command.vm_id);
    if !dir.exists() {
        return Err(Error::not_found("VM on this host", command.vm_id));
    }
    let path = dir.join("serial.log");
    tokio::task::spawn_blocking(move || {
        let max = u64::from(command.max).min(MAX);
        read(&path, command.offset, max).map_err(|e| Error::from(FileError::new("reading", &path, e)))
    })
    .await
    .map_err(Error::internal)?
}

/// At most `max` bytes from `offset`, or of the end. A log that has become shorter than `offset` was
/// begun anew: then it is read from its beginning.
fn read(path: &Path, offset: Option<u64>, max: u64) -> io::Result<ConsoleLog> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(ConsoleLog { text: String::new(), offset: 0, next_offset: 0 });
        }
        Err(e) => return Err(e),
    };
    let size = file.metadata()?.len();
    let offset = match offset {
        Some(offset) if offset <= size => offset,
        Some(_) => 0,
        None => size.saturating_sub(max),
    };
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    bytes.truncate(whole_characters(&bytes));
    let next_offset = offset + bytes.len() as u64;
    Ok(ConsoleLog { text: String::from_utf8_lossy(&bytes).into_owned(), offset, next_offset })
}

/// How many bytes to give so that a character which is cut at the end comes whole next time. A guest
/// that never completes one gets it replaced.
fn whole_characters(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let tail = &bytes[bytes.len() - back..];
        if let Err(error) = std::str::from_utf8(tail)
            && error.error_len().is_none()
            && error.valid_up_to() == 0
            && back < bytes.len()
        {
            return bytes.len() - back;
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(content: &[u8], offset: Option<u64>, max: u64) -> (String, u64, u64) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serial.log");
        std::fs::write(&path, content).unwrap();
        let log = read(&path, offset, max).unwrap();
        (log.text, log.offset, log.next_offset)
    }

    #[test]
    fn the_end_a_piece_and_nothing_more() {
        assert_eq!(piece(b"0123456789", None, 4), ("6789".into(), 6, 10));
        assert_eq!(piece(b"0123456789", Some(2), 4), ("2345".into(), 2, 6));
        assert_eq!(piece(b"0123456789", Some(10), 4), (String::new(), 10, 10));
    }

    #[test]
    fn a_log_that_was_begun_anew_is_read_from_its_beginning() {
        assert_eq!(piece(b"new", Some(500), 10), ("new".into(), 0, 3));
    }

    #[test]
    fn a_character_that_is_cut_comes_whole_next_time_and_rubbish_is_replaced() {
        assert_eq!(piece("aé".as_bytes(), Some(0), 2), ("a".into(), 0, 1));
        assert_eq!(piece("aé".as_bytes(), Some(1), 2), ("é".into(), 1, 3));
        assert_eq!(piece(b"a\xffb", Some(0), 9), ("a\u{fffd}b".into(), 0, 3));
        assert_eq!(piece(b"\xc3", Some(0), 9), ("\u{fffd}".into(), 0, 1));
    }

    #[test]
    fn a_guest_that_wrote_nothing_has_an_empty_log() {
        let log = read(Path::new("/nonexistent/serial.log"), None, 10).unwrap();
        assert_eq!((log.text.as_str(), log.next_offset), ("", 0));
    }
}
