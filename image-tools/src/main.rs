//! `towline`: pulls images lazily, and runs containers of them while they are still being pulled.

fn main() -> std::process::ExitCode {
    towline_image_tools::run()
}
