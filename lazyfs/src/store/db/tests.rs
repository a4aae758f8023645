use super::*;

fn image(digest: Digest, name: &str) -> NewImage<'_> {
    let state = ImageState::Lazy;
    NewImage { digest, name, reference: name, state, bytes_total: 100, content_bytes: 300, entries: 3 }
}

#[test]
fn names_move_and_the_last_one_takes_the_image_along() {
    let dir = tempfile::tempdir().unwrap();
    let mut db = Db::open(dir.path()).unwrap();
    let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
    db.add_image(&image(one, "a:1")).unwrap();
    db.add_image(&image(one, "b:1")).unwrap();
    assert_eq!(db.image(&one).unwrap().unwrap().names, ["a:1", "b:1"]);
    db.add_image(&image(two, "a:1")).unwrap();
    assert_eq!(db.resolve("a:1").unwrap().unwrap().digest, two);
    assert_eq!(db.resolve(&two.short()).unwrap().unwrap().digest, two);

    db.pin("container", &two).unwrap();
    assert_eq!(db.remove_name("a:1").unwrap_err().outcome(), Outcome::Busy);
    db.unpin("container").unwrap();
    assert_eq!(db.remove_name("a:1").unwrap(), (two, true));
    assert_eq!(db.remove_name("a:1").unwrap_err().outcome(), Outcome::NotFound);
    assert_eq!(db.images().unwrap().len(), 1);
}

#[test]
fn what_goes_before_files_go_is_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut db = Db::open(dir.path()).unwrap();
    let level = |connection: &Connection| connection.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0));
    let mut inside = 0;
    db.write_durably("looking", |transaction| level(transaction).map(|found| inside = found)).unwrap();
    // FULL, and NORMAL again.
    assert_eq!((inside, level(&db.connection).unwrap()), (2, 1));
}

#[test]
fn what_is_held_stays_and_the_longest_unused_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut db = Db::open(dir.path()).unwrap();
    let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
    db.add_image(&image(one, "a:1")).unwrap();
    db.add_image(&image(two, "b:1")).unwrap();
    let age = |db: &Db, image: &Digest, seconds: i64| {
        let query = "UPDATE image SET last_used = last_used - ?2, created = created - ?2 WHERE digest = ?1";
        db.connection.execute(query, params![image.as_bytes(), seconds]).unwrap();
    };
    age(&db, &one, 100);
    age(&db, &two, 50);
    assert_eq!(db.by_last_use().unwrap(), [one, two]);
    db.pin("container", &one).unwrap();
    age(&db, &one, 100);
    assert!(!db.remove_unpinned(&one).unwrap());
    // It was in use until this moment.
    db.unpin("container").unwrap();
    assert_eq!(db.by_last_use().unwrap(), [two, one]);
    assert!(db.remove_unpinned(&two).unwrap() && !db.remove_unpinned(&two).unwrap());
    assert_eq!(db.resolve("b:1").unwrap().map(|row| row.digest), None);
    assert_eq!(db.pin("late", &two).unwrap_err().outcome(), Outcome::NotFound, "it may have gone just before");
}

#[test]
fn progress_and_state_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let digest = Digest::of(b"1");
    {
        let mut db = Db::open(dir.path()).unwrap();
        db.add_image(&image(digest, "a:1")).unwrap();
        db.set_local(&digest, 40).unwrap();
    }
    let mut db = Db::open(dir.path()).unwrap();
    let row = db.image(&digest).unwrap().unwrap();
    assert_eq!((row.state, row.bytes_local), (ImageState::Lazy, 40));
    db.set_state(&digest, ImageState::Complete, "").unwrap();
    let row = db.image(&digest).unwrap().unwrap();
    assert_eq!((row.state, row.bytes_local), (ImageState::Complete, 100));
}

#[test]
fn a_database_of_another_version_or_no_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Db::open(dir.path()).unwrap());
    Connection::open(dir.path().join("db")).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert_eq!(Db::open(dir.path()).unwrap_err().outcome(), Outcome::Unsupported);

    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("db"), vec![7; 8192]).unwrap();
    assert!(Db::open(other.path()).is_err());
}
