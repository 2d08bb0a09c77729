//! What 2,000 attackers cost the drill. In a binary of its own, because it measures the process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use palisade_drill::Drill;
use std::time::Duration;
use tokio::{io::AsyncWriteExt, net::TcpListener};

/// The places, with which 2,000 attackers come.
const PLACES: usize = 1_804;
/// The largest memory of 2,000 attackers, and of as many newcomers and both sides of the sockets.
const MAX_BYTES: u64 = 64 << 20;

/// Answers every read, and keeps every connection. It needs little memory itself.
async fn patient(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            loop {
                stream.readable().await?;
                match stream.try_read(&mut [0; 4_096]) {
                    Ok(0) => return std::io::Result::Ok(()),
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                    Err(error) => return Err(error),
                }
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .await?;
            }
        });
    }
}

/// Returns a line of `/proc/self/status` in bytes.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1_024
}

/// Returns the processor time of this process.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(10 * ticks)
}

#[tokio::test]
async fn two_thousand_attackers_need_less_than_64_mib() {
    let (memory_before, time_before) = (memory("VmRSS:"), processor_time());
    let drill = Drill::serving(patient).places(PLACES).quick();
    let report = drill.only("dripped-head").run().await.unwrap();
    let attack = report.attack("dripped-head").unwrap();
    assert_eq!(attack.attackers.connections, 2_000, "{report}");
    let bytes = memory("VmHWM:") - memory_before;
    let cores = (processor_time() - time_before).as_secs_f64() / report.seconds;
    println!(
        "{} MiB, {cores:.2} cores, late by {} ms at most",
        bytes >> 20,
        attack.lateness_ms
    );
    assert!(bytes <= MAX_BYTES, "{bytes} bytes: {report}");
}
