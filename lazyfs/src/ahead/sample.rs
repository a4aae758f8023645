//! ELF files for tests.

/// A little ELF file of 64 bits with three segments: all of it, its interpreter, its dynamic section.
pub(crate) fn elf(interpreter: Option<&str>, libraries: &[&str], run_path: Option<&str>) -> Vec<u8> {
    const BASE: u64 = 0x1000;
    const HEADER: u64 = 64;
    const SEGMENT: u64 = 56;
    let interpreter = interpreter.map(|path| format!("{path}\0")).unwrap_or_default();
    let mut strings = vec![0u8];
    let mut entries: Vec<(u64, u64)> = Vec::new();
    let named = libraries.iter().map(|name| (1, *name)).chain(run_path.map(|path| (29, path)));
    for (tag, text) in named {
        entries.push((tag, strings.len() as u64));
        strings.extend(text.bytes().chain([0]));
    }
    let interpreter_at = HEADER + 3 * SEGMENT;
    let strings_at = interpreter_at + interpreter.len() as u64;
    let dynamic_at = strings_at + strings.len() as u64;
    entries.extend([(5, BASE + strings_at), (0, 0)]);
    let dynamic_len = entries.len() as u64 * 16;
    let total = dynamic_at + dynamic_len;

    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([3, 0, 62, 0, 1, 0, 0, 0]); // a shared object for x86-64
    file.extend([0, HEADER, 0].map(u64::to_le_bytes).concat());
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    let interp_kind = if interpreter.is_empty() { 4 } else { 3 };
    for (kind, offset, len) in
        [(1u32, 0, total), (interp_kind, interpreter_at, interpreter.len() as u64), (2, dynamic_at, dynamic_len)]
    {
        file.extend(kind.to_le_bytes());
        file.extend([0; 4]);
        file.extend([offset, BASE + offset, BASE + offset, len, len, 1].map(u64::to_le_bytes).concat());
    }
    file.extend(interpreter.bytes());
    file.extend(strings);
    file.extend(entries.iter().flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat()));
    file
}
