//! Reaching an endpoint: a connection's begin, and how long one may last.
//!
//! Names are resolved for each connection, and connections have an age: so an endpoint that moved, or grew, is found
//! without a restart, and a connection through a load balancer doesn't stay for ever where it once came to. Of a name's
//! addresses each has its share of the time, so one that swallows everything doesn't hide the next.
//!
//! Limits: `ADDRESSES_MAX` addresses of a name.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{lookup_host, TcpStream, UnixStream};
use tokio::time::{timeout, timeout_at, Instant};

use super::shared::{Heard, Socket, Target};

const ADDRESSES_MAX: usize = 8;

/// How long connections may take to be made, and be used.
#[derive(Clone, Copy)]
pub struct Lives {
    pub connect: Duration,
    pub age: Duration,
}

impl Lives {
    /// When a connection that is made now is too old: a little before its age, each at another time.
    pub fn end(&self) -> Instant {
        Instant::now() + self.age - self.age * chance() / 2048
    }

    /// What a connection that wasn't made in time failed with.
    fn late(&self) -> String {
        format!("no connection within {} s", self.connect.as_secs_f64())
    }
}

/// 0 to 255. The low bits of the clock: many sidecars shall not come at once, and nobody gains by guessing.
pub fn chance() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.subsec_nanos() / 1000 % 256)
}

/// A connection, or why there is none.
pub async fn dial(target: &Target, lives: &Lives, heard: Arc<Heard>) -> Result<Socket, String> {
    let until = Instant::now() + lives.connect;
    let (host, port) = match target {
        Target::Tcp { host, port } => (host.as_str(), *port),
        Target::Unix(path) => {
            return match timeout_at(until, UnixStream::connect(path)).await {
                Ok(Ok(stream)) => Ok(Socket::unix(stream, heard)),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(lives.late()),
            };
        }
    };
    let addresses: Vec<_> = match timeout_at(until, lookup_host((host, port))).await {
        Ok(Ok(found)) => found.take(ADDRESSES_MAX).collect(),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("its name was not resolved within {} s", lives.connect.as_secs_f64())),
    };
    let mut why = "its name has no address".to_owned();
    for (number, address) in addresses.iter().enumerate() {
        let share = until.saturating_duration_since(Instant::now()) / (addresses.len() - number) as u32;
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(Socket::tcp(stream, heard)),
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = lives.late(),
        }
    }
    Err(why)
}
