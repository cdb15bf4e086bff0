//! Passes on what a child process prints, line by line, each marked with who said it.
//!
//! Comes in: a child's piped stream. Goes out: lines to a function, and the line that best explains the child's end.
//! A stream is read to its end whatever becomes of the lines: a child never waits for its reader.

use std::{
    io::{self, BufRead, BufReader, Read},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::command_line::cli::LogFormat;

/// Longer lines are passed on in pieces of this size.
const LONGEST_LINE: u64 = 64 * 1024;
/// Of what is remembered of a line: a message for people, with room in the 4,096 bytes that Kubernetes keeps.
const LONGEST_WORDS: usize = 1000;
/// For the readers to come to the end of the streams of a child that has ended.
const DRAIN: Duration = Duration::from_secs(2);

/// A child's line with its author: in front of a line of text, as a field of a JSON object.
#[must_use]
pub fn mark(line: &str, author: &str, format: LogFormat) -> String {
    let name = serde_json::to_string(author).unwrap_or_default();
    match line.strip_prefix('{') {
        Some(rest) if rest.trim_start().starts_with('"') => format!("{{\"member\":{name},{rest}"),
        _ if format == LogFormat::Json => format!("{{\"member\":{name},\"message\":{}}}", Value::from(line)),
        _ => format!("{author} {line}"),
    }
}

/// The line that explains a process's end: its last error, else its last line.
#[derive(Clone, Debug, Default)]
pub struct LastWords(Arc<Mutex<Words>>);

#[derive(Debug, Default)]
struct Words {
    error: Option<String>,
    line: Option<String>,
}

impl LastWords {
    /// Takes note of a line.
    pub fn hear(&self, line: &str) {
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (message, is_error) = match serde_json::from_str::<Value>(line) {
            Ok(value) => {
                let message = value["fields"]["message"].as_str().unwrap_or(line).to_owned();
                (message, value["level"] == "ERROR")
            }
            Err(_) => (line.to_owned(), line.contains(" ERROR ") || line.contains("panicked at") || line.starts_with("error: ")),
        };
        let message: String = message.chars().take(LONGEST_WORDS).collect();
        if is_error {
            words.error = Some(message.clone());
        }
        words.line = Some(message);
    }

    /// What was heard.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        words.error.clone().or_else(|| words.line.clone())
    }
}

/// The readers of all streams.
#[derive(Debug, Default)]
pub struct Readers(Vec<JoinHandle<()>>);

impl Readers {
    /// Reads `stream` to its end on a thread of its own, and calls `say` with every line, without its end.
    pub fn read(&mut self, stream: impl Read + Send + 'static, mut say: impl FnMut(&str) + Send + 'static) -> io::Result<()> {
        self.0.retain(|reader| !reader.is_finished());
        let work = move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            loop {
                line.clear();
                match stream.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) => say(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r'])),
                }
            }
        };
        self.0.push(thread::Builder::new().name("output".to_owned()).spawn(work)?);
        Ok(())
    }
}

impl Drop for Readers {
    /// Lets the last lines through.
    fn drop(&mut self) {
        let begun = Instant::now();
        while self.0.iter().any(|reader| !reader.is_finished()) && begun.elapsed() < DRAIN {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_marked_in_front_and_an_object_by_a_field() {
        let check = |line: &str, format, expected: &str| assert_eq!(mark(line, "w-0/1", format), expected);
        check("INFO hello", LogFormat::Human, "w-0/1 INFO hello");
        check("say \"x\"", LogFormat::Json, r#"{"member":"w-0/1","message":"say \"x\""}"#);
        for format in [LogFormat::Human, LogFormat::Json] {
            check(r#"{"event":"step"}"#, format, r#"{"member":"w-0/1","event":"step"}"#);
        }
        check("{ braces", LogFormat::Human, "w-0/1 { braces");
    }

    #[test]
    fn the_last_error_explains_an_end_better_than_the_last_line() {
        let words = LastWords::default();
        assert_eq!(words.get(), None);
        words.hear("2026-01-01T00:00:00Z  INFO group formed");
        assert_eq!(words.get().unwrap(), "2026-01-01T00:00:00Z  INFO group formed");
        words.hear(r#"{"level":"ERROR","fields":{"message":"no room","exit_code":75}}"#);
        words.hear("something else");
        words.hear("");
        assert_eq!(words.get().unwrap(), "no room");
    }

    #[test]
    fn lines_come_whole_and_an_endless_one_in_pieces() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut readers = Readers::default();
        let text = format!("one\ntwo\r\n{}", "x".repeat(LONGEST_LINE as usize + 5));
        readers.read(io::Cursor::new(text), move |line| sender.send(line.len()).unwrap()).unwrap();
        drop(readers);
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [3, 3, LONGEST_LINE as usize, 5]);
    }
}
