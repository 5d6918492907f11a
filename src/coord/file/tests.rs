use std::process::Command;

use super::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn record(holder: Holder, heartbeat: u64) -> Record {
    Record { heartbeat, ..Record::of(holder) }
}

#[test]
fn a_swap_is_made_only_where_what_was_seen_still_stands() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    let mut one = FileRegister::open(&path, Holder(1)).unwrap();
    let mut other = FileRegister::open(&path, Holder(2)).unwrap();
    let absent = one.read(soon()).unwrap();
    assert_eq!(absent, Seen { revision: 0, value: Value::Absent });
    assert_eq!(one.swap(&absent, &record(Holder(1), 1), soon()), Ok(Swapped::Done(1)));
    assert_eq!(other.swap(&absent, &record(Holder(2), 1), soon()), Ok(Swapped::Refused));
    let seen = other.read(soon()).unwrap();
    assert_eq!(seen, Seen { revision: 1, value: Value::Record(record(Holder(1), 1)) });
    assert_eq!(other.swap(&seen, &record(Holder(2), 2), soon()), Ok(Swapped::Done(2)));
    assert_eq!(one.swap(&seen, &record(Holder(1), 2), soon()), Ok(Swapped::Refused));
    std::fs::write(&path, "something else").unwrap();
    assert_eq!(one.read(soon()).unwrap().value, Value::Unreadable);
}

/// Signals to these numbers would go to others, or to the first process.
#[test]
fn no_other_number_is_taken_for_a_process_and_no_other_file_for_a_holders() {
    for pid in ["-1", "0", "1", "x", ""] {
        assert_eq!(Process::parse(&format!("{pid} 2 3 4")), None, "{pid}");
    }
    assert!(Process::parse("2 2 3 4").is_some() && Process::parse("2 2 3").is_none());
    assert_eq!(holder_of(b"fleet", b"fleet.00000000000000ff"), Some("00000000000000ff"));
    for name in ["fleet.ff", "fleet.00000000000000fg", "fleet.lock", "fleet", "other.00000000000000ff"] {
        assert_eq!(holder_of(b"fleet", name.as_bytes()), None, "{name}");
    }
    assert!(network(0x6969).is_some() && network(0x0102_1994).is_none(), "tmpfs is of this host");
}

#[test]
fn a_file_without_its_content_is_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    let mut register = FileRegister::open(&path, Holder(1)).unwrap();
    for left in ["", "\0\0\0\0"] {
        std::fs::write(&path, left).unwrap();
        let absent = register.read(soon()).unwrap();
        assert_eq!(absent, Seen { revision: 0, value: Value::Absent });
        assert_eq!(register.swap(&absent, &record(Holder(1), 1), soon()), Ok(Swapped::Done(1)));
    }
}

#[test]
fn a_record_is_on_disk_before_it_takes_the_old_ones_place_and_a_slow_disk_delays_no_heartbeat() {
    thread_local! { static SYNCED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) } }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    let mut register = FileRegister::open(&path, Holder(1)).unwrap();
    register.sync = |_| {
        SYNCED.set(SYNCED.get() + 1);
        Ok(())
    };
    let swap = |register: &mut FileRegister, new: Record| {
        let seen = register.read(soon()).unwrap();
        assert!(matches!(register.swap(&seen, &new, soon()), Ok(Swapped::Done(_))));
        SYNCED.get()
    };
    assert_eq!(swap(&mut register, record(Holder(1), 1)), 1);
    assert_eq!(swap(&mut register, record(Holder(1), 2)), 2);
    register.is_slow = true;
    assert_eq!(swap(&mut register, record(Holder(1), 3)), 2);
    let changed = Record { tenure: crate::coord::Tenure::Free, ..record(Holder(1), 4) };
    assert_eq!(swap(&mut register, changed), 3);
    assert!(!register.is_slow, "it was quick this time");
    let seen = register.read(soon()).unwrap();
    assert!(register.swap(&seen, &record(Holder(1), 5), Instant::now()).is_ok());
    assert!(register.is_slow, "it took more than its time");
    register.sync = |file| {
        let length = file.metadata()?.len();
        Err(io::Error::other(format!("{length} bytes cannot be written")))
    };
    let seen = register.read(soon()).unwrap();
    let changed = Record { tenure: crate::coord::Tenure::Free, ..record(Holder(1), 6) };
    assert!(register.swap(&seen, &changed, soon()).is_err());
    assert_eq!(register.read(soon()).unwrap(), seen, "what is not on disk takes no place");
}

#[test]
fn what_ended_processes_left_is_removed_but_for_the_proof_that_the_holder_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    let kept = |holder: u64| beside(&path, &Holder(holder).to_string());
    let mut one = FileRegister::open(&path, Holder(1)).unwrap();
    let absent = one.read(soon()).unwrap();
    assert_eq!(one.swap(&absent, &record(Holder(1), 1), soon()), Ok(Swapped::Done(1)));
    // Killed: one and a standby. Another standby lives, and a file is none of theirs.
    let text = std::fs::read(&one.life_path).unwrap();
    drop(one);
    let living = FileRegister::open(&path, Holder(3)).unwrap();
    for holder in [1, 2] {
        std::fs::write(kept(holder), &text).unwrap();
    }
    std::fs::write(kept(4), "somebody else's").unwrap();
    std::fs::write(beside(&path, "more"), &text).unwrap();
    let mut other = FileRegister::open(&path, Holder(5)).unwrap();
    let there = || (1..6).filter(|&holder| kept(holder).exists()).collect::<Vec<_>>();
    assert_eq!(there(), [1, 3, 4, 5]);
    assert!(other.is_dead(Holder(1)));
    let seen = other.read(soon()).unwrap();
    assert_eq!(other.swap(&seen, &record(Holder(5), 1), soon()), Ok(Swapped::Done(2)));
    assert_eq!(there(), [3, 4, 5]);
    assert!(beside(&path, "more").exists() && is_at(&living.life, &living.life_path));
}

/// The file of a process, or of the record's lock, is removed and made again by others between
/// its opening and its locking here: that lock says nothing of the one that is there.
#[test]
fn a_lock_counts_on_the_file_that_is_there_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let opened = made(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(!is_locked_at(&opened, &path).unwrap(), "it was removed");
    let next = made(&path).unwrap();
    assert!(!is_locked_at(&opened, &path).unwrap(), "another one was made");
    assert!(is_locked_at(&next, &path).unwrap());
    assert!(!is_locked_at(&made(&path).unwrap(), &path).unwrap(), "another one has it");
    drop(next);
    assert!(is_locked_at(&made(&path).unwrap(), &path).unwrap());
}

#[test]
fn many_swaps_at_once_are_made_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    std::thread::scope(|scope| {
        for holder in 1..5 {
            let path = &path;
            scope.spawn(move || {
                let mut register = FileRegister::open(path, Holder(holder)).unwrap();
                for heartbeat in 0..50 {
                    while let Ok(seen) = register.read(soon()) {
                        let made = register.swap(&seen, &record(Holder(holder), heartbeat), soon()).unwrap();
                        if made == Swapped::Done(seen.revision + 1) {
                            break;
                        }
                    }
                }
            });
        }
    });
    assert_eq!(FileRegister::open(&path, Holder(9)).unwrap().read(soon()).unwrap().revision, 200);
}

#[test]
fn a_process_is_dead_when_its_lock_is_free_and_not_where_nobody_knows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    let mut one = FileRegister::open(&path, Holder(1)).unwrap();
    let other = FileRegister::open(&path, Holder(2)).unwrap();
    assert!(!one.is_dead(Holder(2)), "it lives");
    assert!(!one.is_dead(Holder(3)), "nobody knows it");
    // As a process that is killed: its file stays.
    let kept = std::fs::read(&other.life_path).unwrap();
    drop(other);
    assert!(!one.is_dead(Holder(2)), "it has ended in good order, and its record is free");
    std::fs::write(beside(&path, &Holder(2).to_string()), kept).unwrap();
    assert!(one.is_dead(Holder(2)));
}

#[test]
fn a_holder_whose_lock_was_removed_raises_no_heartbeat() {
    let dir = tempfile::tempdir().unwrap();
    let mut register = FileRegister::open(&dir.path().join("record"), Holder(1)).unwrap();
    let absent = register.read(soon()).unwrap();
    assert_eq!(register.swap(&absent, &record(Holder(1), 1), soon()), Ok(Swapped::Done(1)));
    std::fs::remove_file(&register.life_path).unwrap();
    let seen = register.read(soon()).unwrap();
    assert!(register.swap(&seen, &record(Holder(1), 2), soon()).is_err());
    assert!(!register.life_path.exists());
}

#[test]
fn a_stopped_process_is_ended_and_no_other_one_with_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    let mut one = FileRegister::open(&path, Holder(1)).unwrap();
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let process = Process::of(child.id() as i32).unwrap();
    let life = beside(&path, &Holder(2).to_string());
    for other in [
        Process { started: "1".to_owned(), ..process.clone() },
        Process { boot: "another".to_owned(), ..process.clone() },
        Process { numbers: "pid:[1]".to_owned(), ..process.clone() },
    ] {
        std::fs::write(&life, other.to_string()).unwrap();
        assert!(one.end(Holder(2)).unwrap().contains("cannot"), "{other}");
    }
    assert_eq!(child.try_wait().unwrap(), None);
    std::fs::write(&life, process.to_string()).unwrap();
    assert!(!one.end(Holder(2)).unwrap().contains("cannot"));
    child.wait().unwrap();
}

#[test]
fn network_file_systems_are_refused_by_name() {
    assert_eq!((network(0x6969), network(0xff53_4d42)), (Some("nfs"), Some("smb")));
    // ext4, tmpfs, xfs, btrfs, overlayfs.
    for local in [0xef53, 0x0102_1994, 0x5846_5342, 0x9123_683e, 0x794c_7630] {
        assert_eq!(network(local), None);
    }
    let missing = FileRegister::open(Path::new("/nowhere/at/all"), Holder(1)).unwrap_err().to_string();
    assert!(missing.contains("the directory /nowhere/at is not there; make it"), "{missing}");
}

/// It said that it was ready, and no other one could take over from the active proxy.
#[test]
fn a_standby_whose_file_was_removed_makes_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    let mut one = FileRegister::open(&path, Holder(1)).unwrap();
    let mut other = FileRegister::open(&path, Holder(2)).unwrap();
    let absent = one.read(soon()).unwrap();
    assert_eq!(one.swap(&absent, &record(Holder(1), 1), soon()), Ok(Swapped::Done(1)));
    let (life, own) = (other.life_path.clone(), Process::own().unwrap());
    let shows = || {
        let mut text = String::new();
        let mut file = made(&life).unwrap();
        file.read_to_string(&mut text).unwrap();
        !is_locked_at(&file, &life).unwrap() && Process::parse(&text).as_ref() == Some(&own)
    };
    std::fs::remove_file(&life).unwrap();
    assert_eq!(other.is_fit(Holder(1)), Ok(()));
    assert!(shows());
    // Somebody has put an old one there.
    std::fs::remove_file(&life).unwrap();
    std::fs::write(&life, format!("2 2 3 4{}", " ".repeat(500))).unwrap();
    assert_eq!(other.is_fit(Holder(1)), Ok(()));
    assert!(shows());
    // And one that is another process's, as far as anybody can see.
    std::fs::remove_file(&life).unwrap();
    let strange = made(&life).unwrap();
    assert!(is_locked_at(&strange, &life).unwrap());
    let said = other.is_fit(Holder(1)).unwrap_err().to_string();
    assert!(said.contains("was removed") && said.contains("another process"), "{said}");
    let seen = other.read(soon()).unwrap();
    assert!(other.swap(&seen, &record(Holder(2), 1), soon()).is_err());
    assert!(is_at(&strange, &life), "it is left alone");
    drop(strange);
    assert_eq!(other.swap(&seen, &record(Holder(2), 1), soon()), Ok(Swapped::Done(2)));
    assert!(shows());
    // The record's holder would be taken for dead between the making and the locking.
    std::fs::remove_file(&life).unwrap();
    assert!(other.is_fit(Holder(2)).is_err() && !life.exists());
}

/// Where a swap would fail, the active proxy's process is not ended for nothing.
#[test]
fn a_swap_is_tried_out_without_changing_anything() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    let mut register = FileRegister::open(&path, Holder(1)).unwrap();
    let absent = register.read(soon()).unwrap();
    assert_eq!(register.can_swap(soon()), Ok(()));
    assert_eq!(register.swap(&absent, &record(Holder(1), 1), soon()), Ok(Swapped::Done(1)));
    let seen = register.read(soon()).unwrap();
    assert_eq!(register.can_swap(soon()), Ok(()));
    assert!(!beside(&path, NEXT).exists());
    register.sync = |_| Err(io::Error::other("no space is left"));
    let said = register.can_swap(soon()).unwrap_err().to_string();
    assert!(said.contains("no space is left"), "{said}");
    register.sync = File::sync_data;
    let locked = register.lock(soon()).unwrap();
    assert_eq!(register.can_swap(Instant::now()), Ok(()), "the holder may be stopped amid a heartbeat");
    drop(locked);
    assert_eq!(register.can_swap(soon()), Ok(()));
    assert_eq!(register.read(soon()).unwrap(), seen);
}

/// The opening of a pipe waited for its other end, for ever; a directory was read in vain, for
/// ever.
#[test]
fn what_is_no_file_is_refused_at_the_start_and_waited_for_at_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    let pipe = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    for end in ["", ".lock", ".new"] {
        let there = PathBuf::from(format!("{}{end}", path.display()));
        pipe(&there);
        let said = FileRegister::open(&path, Holder(1)).unwrap_err().to_string();
        assert!(said.contains(&format!("{}: that is a pipe", there.display())), "{said}");
        std::fs::remove_file(&there).unwrap();
        std::fs::create_dir(&there).unwrap();
        let said = FileRegister::open(&path, Holder(1)).unwrap_err().to_string();
        assert!(said.contains(&format!("{}: that is a directory", there.display())), "{said}");
        std::fs::remove_dir(&there).unwrap();
    }
    // Later, and in the place of another proxy's.
    let mut register = FileRegister::open(&path, Holder(1)).unwrap();
    let absent = register.read(soon()).unwrap();
    assert_eq!(register.swap(&absent, &record(Holder(1), 1), soon()), Ok(Swapped::Done(1)));
    let seen = register.read(soon()).unwrap();
    pipe(&beside(&path, &Holder(2).to_string()));
    assert!(!register.is_dead(Holder(2)) && register.end(Holder(2)).is_none());
    assert!(register.sweep(None).is_ok());
    pipe(&beside(&path, NEXT));
    assert!(register.swap(&seen, &record(Holder(1), 2), soon()).is_err());
    std::fs::remove_file(&path).unwrap();
    pipe(&path);
    assert!(register.read(soon()).is_err());
}
