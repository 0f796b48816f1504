//! Several processes that write one file, also where locks exclude nobody or fail, and where a rename is misreported.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use eplb::atomic_file::AtomicFile;
use tempfile::TempDir;

/// What flock() does: as the system has it, success without a lock, and errors: ENOLCK, EINVAL and the kernel's ENOTSUPP.
const FLOCKS: [Option<&str>; 5] = [None, Some("0"), Some("37"), Some("22"), Some("524")];

/// A writer's content: one letter, of which each letter has another number.
fn content(letter: u8) -> Vec<u8> {
    vec![letter; 100_000 + 30_000 * usize::from(letter - b'a')]
}

/// A process that writes `path` by its role: see [`writer`].
struct Writer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Writer {
    fn start(
        library: &Path,
        role: &str,
        letter: u8,
        path: &Path,
        unreliable: &[(&str, Option<&str>)],
    ) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "writer", "--ignored", "--nocapture"]);
        command
            .env("EPLB_ROLE", role)
            .env("EPLB_LETTER", (letter as char).to_string())
            .env("EPLB_TARGET", path);
        command.env("LD_PRELOAD", library).stdin(Stdio::piped()).stdout(Stdio::piped());
        for (name, value) in unreliable {
            value.map(|value| command.env(name, value));
        }
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Writer { child, stdin, stdout }
    }

    /// The next line that begins with "> ", without that.
    fn line(&mut self) -> String {
        let mut line = String::new();
        while self.stdout.read_line(&mut line).unwrap() > 0 {
            // The harness writes the name of the test before it.
            if let Some((_, printed)) = line.split_once("> ") {
                return printed.trim_end().to_owned();
            }
            line.clear();
        }
        panic!("the writer ended: {:?}", self.child.wait())
    }

    fn go_on(&mut self) {
        self.stdin.write_all(b"\n").unwrap();
    }

    /// Lets it end, and checks that it succeeded.
    fn end(mut self) {
        drop(self.stdin);
        assert!(self.child.wait().unwrap().success());
    }
}

/// The process: run by the others.
#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn writer() {
    let of = |name| env::var(name).unwrap();
    let (role, letter, path) =
        (of("EPLB_ROLE"), of("EPLB_LETTER").as_bytes()[0], PathBuf::from(of("EPLB_TARGET")));
    let print = |what: &str| println!("> {what}");
    let wait = || std::io::stdin().lock().read_line(&mut String::new()).unwrap();
    let bytes = content(letter);
    match &role[..] {
        // Writes the file over and over until its standard input is closed. Some attempts fail.
        "loop" => {
            let ended = std::thread::spawn(wait);
            print("ready");
            for round in 0.. {
                let written = AtomicFile::create(&path).unwrap().replace(|out| {
                    bytes.chunks(4096).try_for_each(|chunk| out.write_all(chunk))?;
                    if round % 4 == 3 { Err(std::io::Error::other("on purpose")) } else { Ok(()) }
                });
                assert_eq!(written.is_err(), round % 4 == 3, "{written:?}");
                // Every process has written before it ends.
                if ended.is_finished() && round > 4 {
                    break;
                }
            }
        }
        // Claims the file, as a recorder does when it is created, and writes and holds it later.
        "hold" => {
            let claim = match AtomicFile::claim(&path, None) {
                Ok(claim) => claim,
                Err(e) => return print(&e.to_string()),
            };
            // Within a process no lock is needed.
            assert!(AtomicFile::claim(&path, None).is_err());
            print("claimed");
            wait();
            let held = claim.replace_and_hold(|out| out.write_all(&bytes)).unwrap();
            assert!(AtomicFile::claim(&path, None).is_err());
            assert!(AtomicFile::claim(&path, Some(&held)).is_ok());
            print("held");
            wait();
            drop(held);
        }
        // Writes the file once.
        _ => print(&match AtomicFile::create(&path).unwrap().replace(|out| out.write_all(&bytes)) {
            Ok(()) => "written".to_owned(),
            Err(e) => e.to_string(),
        }),
    }
}

/// Compiles the library that makes locks and renames unreliable.
fn unreliable(directory: &TempDir) -> PathBuf {
    let library = directory.path().join("unreliable.so");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/writers/unreliable.c"), "-ldl"])
        .status();
    assert!(compiled.unwrap().success());
    library
}

fn files_in(directory: &TempDir) -> Vec<String> {
    let names = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.to_str().unwrap().to_owned()).collect()
}

#[test]
fn readers_see_whole_files_of_four_writers_whatever_flock_returns() {
    let libraries = tempfile::tempdir().unwrap();
    let library = unreliable(&libraries);
    for flock in FLOCKS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        fs::write(&path, content(b'e')).unwrap();
        let mut writers: Vec<Writer> = [b'a', b'b', b'c', b'd']
            .map(|letter| Writer::start(&library, "loop", letter, &path, &[("EPLB_FLOCK", flock)]))
            .into();
        for writer in &mut writers {
            assert_eq!(writer.line(), "ready");
        }
        let mut seen = [0; 5];
        for read in 0.. {
            if read >= 1000 && seen[..4].iter().all(|&times| times > 0) {
                break;
            }
            assert!(read < 1_000_000, "{seen:?}");
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("flock {flock:?}, read {read}: {e}"));
            assert!(!bytes.is_empty() && (b'a'..=b'e').contains(&bytes[0]), "flock {flock:?}, read {read}");
            let whole = content(bytes[0]);
            assert!(bytes == whole, "flock {flock:?}, read {read}: {} of {} bytes", bytes.len(), whole.len());
            seen[usize::from(bytes[0] - b'a')] += 1;
        }
        // A writer fails if any of its files could not be written.
        writers.into_iter().for_each(Writer::end);
        assert_eq!(files_in(&dir), ["config.yaml"], "flock {flock:?}");
    }
}

#[test]
fn a_claimed_file_is_refused_to_another_process_whatever_flock_returns() {
    let libraries = tempfile::tempdir().unwrap();
    let library = unreliable(&libraries);
    for flock in FLOCKS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rank0.safetensors");
        let start = |letter| Writer::start(&library, "hold", letter, &path, &[("EPLB_FLOCK", flock)]);
        let mut first = start(b'a');
        assert_eq!(first.line(), "claimed");
        let mut second = start(b'b');
        let refused = second.line();
        second.end();
        assert!(
            refused.ends_with(
                "rank0.safetensors: it is being written by another process, or by another handle of this one"
            ),
            "flock {flock:?}: {refused}"
        );
        assert!(!path.exists());
        first.go_on();
        assert_eq!(first.line(), "held");
        assert_eq!(files_in(&dir), ["rank0.safetensors"]);
        // Only a lock can show that a process holds a whole file.
        let mut second = start(b'b');
        match flock {
            None => assert_eq!(second.line(), refused),
            Some(_) => assert_eq!(second.line(), "claimed"),
        }
        assert!(fs::read(&path).unwrap() == content(b'a'));
        second.end();
        first.end();
    }
}

#[test]
fn a_killed_writer_refuses_nobody_and_its_partial_file_is_removed() {
    let libraries = tempfile::tempdir().unwrap();
    let library = unreliable(&libraries);
    for flock in FLOCKS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rank0.safetensors");
        let start = |letter| Writer::start(&library, "hold", letter, &path, &[("EPLB_FLOCK", flock)]);
        let mut killed = start(b'a');
        assert_eq!(killed.line(), "claimed");
        killed.child.kill().unwrap();
        killed.child.wait().unwrap();
        let left = files_in(&dir);
        let mut next = start(b'b');
        assert_eq!(next.line(), "claimed", "flock {flock:?}");
        assert_eq!((left.len(), files_in(&dir).len()), (1, 1));
        assert_ne!(left, files_in(&dir));
        next.go_on();
        assert_eq!(next.line(), "held");
        next.end();
        assert_eq!(files_in(&dir), ["rank0.safetensors"]);
    }
}

#[test]
fn a_rename_that_was_carried_out_is_no_error_whatever_it_returned() {
    let libraries = tempfile::tempdir().unwrap();
    let library = unreliable(&libraries);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    let write = |letter, errno| {
        let mut writer = Writer::start(&library, "once", letter, &path, &[("EPLB_RENAME", Some(errno))]);
        let printed = writer.line();
        writer.end();
        assert_eq!(files_in(&dir), ["config.yaml"], "{errno}");
        printed
    };
    // ENOENT, EIO and ESTALE.
    for (letter, errno) in [(b'a', "2"), (b'b', "5"), (b'c', "116")] {
        assert_eq!(write(letter, errno), "written");
        assert!(fs::read(&path).unwrap() == content(letter));
    }
    let failed = write(b'd', "-5");
    assert!(failed.ends_with("config.yaml: Input/output error (os error 5)"), "{failed}");
    assert!(fs::read(&path).unwrap() == content(b'c'));
}
