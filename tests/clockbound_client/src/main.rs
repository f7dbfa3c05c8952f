//! Reads a ClockBound segment of each version with AWS's own clients, and prints what they say.
//!
//!     clockbound-client SHM SHM0
//!
//! Each line on standard input makes one line on standard output: for both versions the status and the interval in
//! nanoseconds since 1970, and what CLOCK_REALTIME read before and after. The clients are opened once, as an
//! application does, so a daemon that restarts must keep them served.

use std::io::{BufRead, Write};
use std::time::{SystemTime, UNIX_EPOCH};

fn realtime_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos()
}

/// One client's answer as a JSON object; a macro, since the two versions' types have nothing in common but names.
macro_rules! answer {
    ($client:expr) => {
        match $client.now() {
            Ok(now) => format!(
                r#"{{"status": "{:?}", "earliest_ns": {}, "latest_ns": {}}}"#,
                now.clock_status,
                i128::from(now.earliest.tv_sec()) * 1_000_000_000 + i128::from(now.earliest.tv_nsec()),
                i128::from(now.latest.tv_sec()) * 1_000_000_000 + i128::from(now.latest.tv_nsec()),
            ),
            Err(error) => format!(r#"{{"status": "error {:?}"}}"#, error.kind),
        }
    };
}

fn main() {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [first, second] = paths.as_slice() else {
        eprintln!("usage: clockbound-client SHM SHM0");
        std::process::exit(64);
    };
    let mut one = client_v1::ClockBoundClient::new_with_path(first).expect("the version 1 segment opens");
    let mut two = client_v2::ClockBoundClient::new_with_path(second).expect("the version 2 segment opens");
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        line.expect("a line");
        let before = realtime_ns();
        let (v1, v2) = (answer!(one), answer!(two));
        let after = realtime_ns();
        writeln!(out, r#"{{"before_ns": {before}, "after_ns": {after}, "v1": {v1}, "v2": {v2}}}"#).expect("written");
        out.flush().expect("flushed");
    }
}
