//! The sockets that libtorch opened for a group: found by their addresses, so that they can be shut down from another thread.
//!
//! Gloo has no call that wakes its waiters: shutting down the connections of a group does, in milliseconds. Descriptors are looked at and
//! never duplicated: a duplicate would keep a socket in Gloo's epoll set after Gloo has closed its own, and its events would then meet
//! freed memory. So each use checks anew that a number is still the socket it was.
#![allow(unsafe_code, reason = "looks at file descriptors that libtorch owns")]

use std::{
    fs, io,
    mem::ManuallyDrop,
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    os::fd::{FromRawFd, RawFd},
};

/// A connection of a group. It owns nothing.
#[derive(Debug)]
pub(crate) struct Connection {
    descriptor: RawFd,
    inode: String,
}

impl Connection {
    /// Whether Gloo has not closed it.
    pub(crate) fn is_open(&self) -> bool {
        inode(self.descriptor).is_some_and(|inode| inode == self.inode)
    }

    /// Bytes that have come over it, as the kernel counts them; none once Gloo has closed it.
    pub(crate) fn received_bytes(&self) -> Option<u64> {
        // `tcpi_bytes_received` of the kernel's `tcp_info`, which is longer than the one in libc: `linux/tcp.h`.
        const PLACE: usize = 128;
        let mut info = [0_u8; PLACE + 8];
        let mut size = info.len() as libc::socklen_t;
        // SAFETY: room for `size` bytes. It may fail, also because the number is no socket any more.
        let status =
            unsafe { libc::getsockopt(self.descriptor, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut size) };
        let bytes = info.get(PLACE..)?.try_into().ok()?;
        (status == 0 && size as usize == info.len() && self.is_open()).then(|| u64::from_ne_bytes(bytes))
    }

    /// Shuts the connection down in both directions, unless Gloo has closed it.
    pub(crate) fn shut_down(&self) {
        if self.is_open() {
            // It may be shut down already.
            let _ = borrow(self.descriptor).shutdown(Shutdown::Both);
        }
    }
}

/// Addresses at `host` of sockets without a peer, with the sockets' inodes: listening ones, when a device has just been opened.
pub(crate) fn without_peer(host: IpAddr) -> io::Result<Vec<(String, SocketAddr)>> {
    let mut found = Vec::new();
    visit_sockets(|connection, socket| {
        if let (Ok(local), Err(_)) = (socket.local_addr(), socket.peer_addr())
            && local.ip() == host
            && local.port() != 0
        {
            found.push((connection.inode, local));
        }
    })?;
    Ok(found)
}

/// The connected sockets that were accepted at one of `own` or lead to one of `peers`.
pub(crate) fn connections(own: &[SocketAddr], peers: &[SocketAddr]) -> io::Result<Vec<Connection>> {
    let mut found = Vec::new();
    visit_sockets(|connection, socket| {
        if let (Ok(local), Ok(peer)) = (socket.local_addr(), socket.peer_addr())
            && (own.contains(&local) || peers.contains(&peer))
        {
            found.push(connection);
        }
    })?;
    Ok(found)
}

/// Calls `visit` with every socket of this process.
fn visit_sockets(mut visit: impl FnMut(Connection, &TcpStream)) -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(descriptor) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        if let Some(inode) = inode(descriptor) {
            visit(Connection { descriptor, inode }, &borrow(descriptor));
        }
    }
    Ok(())
}

/// `socket:[…]`, if the descriptor is a socket now.
fn inode(descriptor: RawFd) -> Option<String> {
    let target = fs::read_link(format!("/proc/self/fd/{descriptor}")).ok()?.to_string_lossy().into_owned();
    target.starts_with("socket:").then_some(target)
}

/// The socket for a moment, without owning it.
fn borrow(descriptor: RawFd) -> ManuallyDrop<TcpStream> {
    // SAFETY: never dropped, so never closed here. The descriptor was a socket a moment ago; if it has been closed since, calls fail. Only a
    // socket that takes the same number within that moment could be mistaken for it.
    ManuallyDrop::new(unsafe { TcpStream::from_raw_fd(descriptor) })
}
