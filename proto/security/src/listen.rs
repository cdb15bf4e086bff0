//! Where servers listen.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::net::TcpListener;

/// `EAFNOSUPPORT` and `EADDRNOTAVAIL` of Linux: the kernel has no IPv6, or it is switched off.
const NO_IPV6: [i32; 2] = [97, 99];

/// Listens on an address. `[::]` takes connections of both families, so that a pod needs not know which its cluster has; on a machine without
/// IPv6 it is taken for `0.0.0.0`.
///
/// # Errors
/// When the address cannot be listened on: it is taken, or none of this machine's.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) => match without_ipv6(address, &error) {
            Some(address) => TcpListener::bind(address).await,
            None => Err(error),
        },
        listener => listener,
    }
}

/// What is listened on instead, if that is what is wrong.
fn without_ipv6(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let is_any = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let is_missing = error.raw_os_error().is_some_and(|code| NO_IPV6.contains(&code));
    (is_any && is_missing).then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn any_address_is_one_of_both_families() -> io::Result<()> {
        let listener = listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).await?;
        let port = listener.local_addr()?.port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        if listener.local_addr()?.is_ipv6() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await?;
        }
        Ok(())
    }

    #[test]
    fn only_a_missing_ipv6_is_replaced() {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 7433));
        let missing = io::Error::from_raw_os_error(97);
        assert_eq!(without_ipv6(any, &missing), Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7433))));
        assert_eq!(without_ipv6(any, &io::Error::from_raw_os_error(98)), None, "the port is taken");
        assert_eq!(without_ipv6(SocketAddr::from((Ipv6Addr::LOCALHOST, 7433)), &missing), None);
    }
}
