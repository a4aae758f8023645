//! Tables as `ps` and `images ls` print them: columns as wide as their widest cell, three spaces apart.

/// Renders rows below a head.
pub fn render(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        format!("{}\n", padded.join("   ").trim_end())
    };
    let mut text = line(head.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

/// The beginning of a text that is too long for a column. Control characters are shown as `?`: a terminal would obey them.
pub fn cut(text: &str, most: usize) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    if text.chars().count() <= most {
        return text.chars().map(clean).collect();
    }
    text.chars().take(most - 1).map(clean).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned(), String::new()]];
        assert_eq!(render(&["X", "Y"], &rows), "X     Y\na     bb\nccc\n");
        assert_eq!(render(&["X"], &[]), "X\n");
    }

    #[test]
    fn long_and_hostile_cells() {
        assert_eq!((cut("abc", 3).as_str(), cut("abcd", 3).as_str(), cut("a\x1b[2J", 9).as_str()), ("abc", "ab…", "a?[2J"));
    }
}
