//! The launcher's end of the socket over which a run is asked (`control.rs`).
//!
//! Comes in: connections on a Unix socket in the run's folder. Goes out: one answer each, from the [`Board`]. One connection at a time, each
//! with a bound on its time, so that whoever connects and says nothing holds up others for a moment and the run not at all.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use super::board::Board;
use crate::processes::control::{Answer, Request, SOCKET, in_folder, read_line, write_line};

/// For a request to come and its answer to be taken: both are one line.
const PATIENCE: Duration = Duration::from_secs(2);
/// After a connection that could not be accepted (too many open files), so that this thread does not spin.
const PAUSE: Duration = Duration::from_millis(100);

/// The socket of a run. It is gone with this.
#[derive(Debug)]
pub(super) struct ControlSocket {
    path: PathBuf,
}

impl ControlSocket {
    /// Listens in `folder`, in the place of whatever an earlier run left there. Whoever holds the folder's lock may do this.
    pub(super) fn open(folder: &Path, board: Arc<Mutex<Board>>) -> io::Result<Self> {
        let path = folder.join(SOCKET);
        // Under a name that nobody looks for, until it listens and is the user's alone.
        let unfinished = tempfile::Builder::new().prefix(".control-").permissions(Permissions::from_mode(0o700)).tempdir_in(folder)?;
        let opened = File::open(unfinished.path())?;
        let listener = UnixListener::bind(in_folder(&opened, SOCKET))?;
        let made = unfinished.path().join(SOCKET);
        fs::set_permissions(&made, Permissions::from_mode(0o600))?;
        fs::rename(&made, &path)?;
        thread::Builder::new().name("control".to_owned()).spawn(move || serve(&listener, &board))?;
        Ok(Self { path })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // What cannot be removed is recognised: nobody listens on it.
        let _ = fs::remove_file(&self.path);
    }
}

fn serve(listener: &UnixListener, board: &Mutex<Board>) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else {
            thread::sleep(PAUSE);
            continue;
        };
        if let Err(error) = answer(&mut stream, board) {
            tracing::debug!(%error, "somebody who asked did not wait for the answer");
        }
    }
}

fn answer(stream: &mut UnixStream, board: &Mutex<Board>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let line = read_line(stream)?;
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(request) => board.lock().unwrap_or_else(PoisonError::into_inner).answer(&request),
        Err(error) => Answer::Refused { reason: format!("the request is not understood ({error}): use programs of one release") },
    };
    write_line(stream, &answer)
}
