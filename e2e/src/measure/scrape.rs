//! A GET request as Prometheus sends it, to a server on loopback.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// Longer than any answer takes; Prometheus waits 10 s.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The body of a successful response. It is compressed only on request.
pub(super) fn get(address: &str, path: &str, compressed: bool) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let encoding = if compressed { "Accept-Encoding: gzip\r\n" } else { "" };
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: Prometheus\r\n\
         Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3\r\n\
         {encoding}Connection: close\r\n\r\n"
    )?;
    let mut answer = vec![];
    stream.read_to_end(&mut answer).with_context(|| format!("reading {address}{path}"))?;
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").context("an answer without an end")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let body = answer.split_off(end + 4);
    ensure!(head.starts_with("HTTP/1.1 200 "), "{address}{path}: {head}\n{}", String::from_utf8_lossy(&body));
    Ok(body)
}

/// The sum of a metric's series with all these labels, in the text of a scrape.
pub(super) fn sum_of(text: &str, metric: &str, labels: &[&str]) -> f64 {
    let series = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(metric)?;
        let (its_labels, value) = rest.rsplit_once(' ')?;
        let named = its_labels.is_empty() || its_labels.starts_with('{');
        (named && labels.iter().all(|label| its_labels.contains(label))).then(|| value.parse::<f64>().ok())?
    });
    series.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_metric_are_summed() {
        let text = "# TYPE a counter\na_total{verb=\"get\",result=\"ok\"} 3\na_total{verb=\"patch\",result=\"ok\"} 4\n\
                    a_total_more{verb=\"get\"} 9\nb 1\n";
        assert_eq!(sum_of(text, "a_total", &[]), 7.0);
        assert_eq!(sum_of(text, "a_total", &["verb=\"get\""]), 3.0);
        assert_eq!(sum_of(text, "b", &[]), 1.0);
        assert_eq!(sum_of(text, "c", &[]), 0.0);
    }
}
