//! The sockets that libtorch opened for a group: found by their addresses, so that they can be shut down from another thread.
//!
//! Gloo has no call that wakes its waiters: shutting down the connections of a group does, in milliseconds. What is kept are duplicates,
//! so that a number that Gloo has closed and another part of the process uses again is never touched.
#![allow(unsafe_code, reason = "duplicates file descriptors that libtorch owns")]

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    os::{
        fd::{BorrowedFd, OwnedFd, RawFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
};

/// Addresses at `host` of sockets without a peer, with the sockets' inodes: listening ones, when a device has just been opened.
pub(crate) fn without_peer(host: IpAddr) -> io::Result<Vec<(u64, SocketAddr)>> {
    let mut found = Vec::new();
    visit_sockets(|inode, socket| {
        if let (Ok(local), Err(_)) = (socket.local_addr(), socket.peer_addr())
            && local.ip() == host
            && local.port() != 0
        {
            found.push((inode, local));
        }
    })?;
    Ok(found)
}

/// Duplicates of the connected sockets that were accepted at one of `own` or lead to one of `peers`.
pub(crate) fn connections(own: &[SocketAddr], peers: &[SocketAddr]) -> io::Result<Vec<TcpStream>> {
    let mut found = Vec::new();
    visit_sockets(|_, socket| {
        if let (Ok(local), Ok(peer)) = (socket.local_addr(), socket.peer_addr())
            && (own.contains(&local) || peers.contains(&peer))
        {
            found.push(socket);
        }
    })?;
    Ok(found)
}

/// Calls `visit` with the inode and a duplicate of every socket of this process.
fn visit_sockets(mut visit: impl FnMut(u64, TcpStream)) -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // Only sockets are duplicated: closing the duplicate of a file would drop the process's locks on it.
        let is_socket = fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
        let number = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        let (true, Some(number)) = (is_socket, number) else { continue };
        // SAFETY: the number may have been closed since; then this fails, or it is another descriptor, which is looked at below.
        let Ok(duplicate) = unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned() else { continue };
        let file = File::from(duplicate);
        let Ok(metadata) = file.metadata() else { continue };
        if metadata.file_type().is_socket() {
            visit(metadata.ino(), TcpStream::from(OwnedFd::from(file)));
        }
    }
    Ok(())
}
