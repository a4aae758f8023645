//! The formats of the kernel's statistics files, as pure parsers: text in, figures out, and for what is malformed the part that is.

use std::collections::BTreeMap;

/// What a parser found malformed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) String);

type Parsed<T> = Result<T, Malformed>;

fn bad(text: &str) -> Malformed {
    Malformed(text.chars().take(80).collect())
}

/// One number; `max` is the largest there is.
pub(super) fn number(text: &str) -> Parsed<u64> {
    match text.trim() {
        "max" => Ok(u64::MAX),
        text => text.parse().map_err(|_| bad(text)),
    }
}

/// Numbers with white space between them.
pub(super) fn numbers(text: &str) -> Parsed<Vec<u64>> {
    text.split_whitespace().map(number).collect()
}

/// Lines `key number`.
pub(super) fn keyed(text: &str) -> Parsed<BTreeMap<&str, u64>> {
    text.lines()
        .map(|line| {
            let (key, value) = line.split_once(' ').ok_or_else(|| bad(line))?;
            Ok((key, number(value).map_err(|_| bad(line))?))
        })
        .collect()
}

/// A device as `8:0`.
fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A line of a file of v1's blkio: `8:0 Read 4096`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BlockLine<'a> {
    pub(super) device: (u64, u64),
    pub(super) op: &'a str,
    pub(super) value: u64,
}

/// The lines of a file of v1's blkio, without the last one, `Total 4096`, which is of no device.
pub(super) fn block(text: &str) -> Parsed<Vec<BlockLine<'_>>> {
    let line = |line| {
        let mut words = str::split_whitespace(line);
        let device = device(words.next()?)?;
        Some(BlockLine { device, op: words.next()?, value: words.next()?.parse().ok()? })
    };
    text.lines().filter(|text| !text.starts_with("Total ")).map(|text| line(text).ok_or_else(|| bad(text))).collect()
}

/// What `io.stat` knows of each device.
pub(super) type IoStat<'a> = Vec<((u64, u64), BTreeMap<&'a str, u64>)>;

/// v2's `io.stat`, lines such as `8:0 rbytes=1 wbytes=2 ...`. Keys that are no numbers are of others (io.cost) and left out.
pub(super) fn io_stat(text: &str) -> Parsed<IoStat<'_>> {
    let mut all = Vec::new();
    for text in text.lines() {
        let mut words = text.split_whitespace();
        let device = words.next().and_then(device).ok_or_else(|| bad(text))?;
        let pairs = words.map(|word| word.split_once('=').ok_or_else(|| bad(text))).collect::<Parsed<Vec<_>>>()?;
        let figures = pairs.into_iter().filter_map(|(key, value)| Some((key, value.parse().ok()?))).collect();
        all.push((device, figures));
    }
    Ok(all)
}

/// A line of a `*.pressure` file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Pressure {
    pub(super) avg10: f64,
    pub(super) avg60: f64,
    pub(super) avg300: f64,
    pub(super) total: u64,
}

/// A `*.pressure` file (Documentation/accounting/psi.rst): the lines `some` and `full`, where they are there.
pub(super) fn pressure(text: &str) -> Parsed<(Option<Pressure>, Option<Pressure>)> {
    let line = |line: &str| {
        let mut all = Pressure::default();
        for word in line.split_whitespace().skip(1) {
            match word.split_once('=')? {
                ("avg10", value) => all.avg10 = value.parse().ok()?,
                ("avg60", value) => all.avg60 = value.parse().ok()?,
                ("avg300", value) => all.avg300 = value.parse().ok()?,
                ("total", value) => all.total = value.parse().ok()?,
                _ => {}
            }
        }
        Some(all)
    };
    let mut found = (None, None);
    for text in text.lines() {
        let parsed = Some(line(text).ok_or_else(|| bad(text))?);
        match text.split_whitespace().next() {
            Some("some") => found.0 = parsed,
            Some("full") => found.1 = parsed,
            _ => return Err(bad(text)),
        }
    }
    Ok(found)
}

/// A line of an `rdma.*` file: `mlx4_0 hca_handle=2 hca_object=max`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rdma<'a> {
    pub(super) device: &'a str,
    pub(super) handles: u32,
    pub(super) objects: u32,
}

/// An `rdma.*` file; no limit is the largest number.
pub(super) fn rdma(text: &str) -> Parsed<Vec<Rdma<'_>>> {
    let line = |line: &'_ str| -> Parsed<(u32, u32)> {
        let mut found = (0, 0);
        for word in line.split_whitespace().skip(1) {
            let (key, value) = word.split_once('=').ok_or_else(|| bad(line))?;
            let value = if value == "max" { u32::MAX } else { value.parse().map_err(|_| bad(line))? };
            match key {
                "hca_handle" => found.0 = value,
                "hca_object" => found.1 = value,
                _ => {}
            }
        }
        Ok(found)
    };
    text.lines()
        .map(|text| {
            let device = text.split_whitespace().next().ok_or_else(|| bad(text))?;
            line(text).map(|(handles, objects)| Rdma { device, handles, objects })
        })
        .collect()
}

/// `/proc/partitions`: the names of block devices by their numbers. Its first two lines are a heading.
pub(super) fn partitions(text: &str) -> Parsed<BTreeMap<(u64, u64), String>> {
    let line = |line: &str| {
        let [major, minor, _, name] = line.split_whitespace().collect::<Vec<_>>()[..] else { return None };
        Some(((major.parse().ok()?, minor.parse().ok()?), format!("/dev/{name}")))
    };
    text.lines().skip(1).filter(|text| !text.is_empty()).map(|text| line(text).ok_or_else(|| bad(text))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel() {
        assert_eq!((number("12\n"), number("max\n")), (Ok(12), Ok(u64::MAX)));
        assert_eq!(numbers("1 2 \n"), Ok(vec![1, 2]));
        assert_eq!(keyed("cache 1\nrss 2\n"), Ok(BTreeMap::from([("cache", 1), ("rss", 2)])));
        let line = BlockLine { device: (8, 16), op: "Read", value: 4096 };
        assert_eq!(block("8:16 Read 4096\nTotal 4096\n"), Ok(vec![line]));
        let figures = BTreeMap::from([("rbytes", 1), ("wios", 2)]);
        assert_eq!(io_stat("8:0 rbytes=1 wios=2 cost.mode=auto\n"), Ok(vec![((8, 0), figures)]));
        let some = Pressure { avg10: 0.5, avg60: 1.0, avg300: 2.25, total: 7 };
        assert_eq!(pressure("some avg10=0.50 avg60=1.00 avg300=2.25 total=7\n"), Ok((Some(some), None)));
        let line = Rdma { device: "mlx4_0", handles: 2, objects: u32::MAX };
        assert_eq!(rdma("mlx4_0 hca_handle=2 hca_object=max\n"), Ok(vec![line]));
        let text = "major minor  #blocks  name\n\n   8        0   20971520 sda\n";
        assert_eq!(partitions(text), Ok(BTreeMap::from([((8, 0), "/dev/sda".to_owned())])));
        // Nothing was counted yet.
        assert_eq!(
            (keyed(""), block("Total 0\n"), io_stat(""), rdma("")),
            (Ok(BTreeMap::new()), Ok(vec![]), Ok(vec![]), Ok(vec![]))
        );
    }

    #[test]
    fn malformed_files_are_refused() {
        type Parser = fn(&str) -> Option<Malformed>;
        let table: &[(Parser, &[&str])] = &[
            (|text| number(text).err(), &["", "x", "-1", "1 2", "18446744073709551616"]),
            (|text| numbers(text).err(), &["1 x"]),
            (|text| keyed(text).err(), &["cache", "cache x", "cache 1 2", " ", "a 1\n\nb 2"]),
            (|text| block(text).err(), &["8:0 Read", "8 Read 1", "8:x Read 1", "8:0 Read x", "Read 1"]),
            (|text| io_stat(text).err(), &["rbytes=1", "8:0 rbytes", "8 rbytes=1", " "]),
            (|text| pressure(text).err(), &["some avg10", "some avg10=x", "most avg10=1", "some total=-1"]),
            (|text| rdma(text).err(), &["mlx4_0 hca_handle", "mlx4_0 hca_handle=x", "mlx4_0 hca_object=4294967296", " "]),
            (|text| partitions(text).err(), &["h\n\n8 0 1", "h\n\nx 0 1 sda", "h\n\n8 0 1 sda x"]),
        ];
        for (index, (parse, texts)) in table.iter().enumerate() {
            for text in *texts {
                assert!(parse(text).is_some(), "parser {index} takes {text:?}");
            }
        }
        assert!(number(&"9".repeat(100_000)).unwrap_err().0.len() <= 80, "the message of a long text is short");
    }
}
