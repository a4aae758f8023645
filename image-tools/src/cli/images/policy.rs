//! `towline images policy`

use serde_json::json;

use super::session::reference;
use crate::cli::ps::Format;
use crate::engine::Engine;
use crate::failure::Outcome;
use crate::policy;

/// Flags of `images policy`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Image: HOST/NAME:TAG, oci:DIR:TAG, oci-archive:FILE:TAG or docker-archive:FILE:NAME:TAG
    #[arg(value_name = "REF")]
    image: String,
}

/// Prints what the signature policy demands of an image. Nobody is asked, and no signature is read.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let reference = reference(&args.image)?;
    let rule = policy::rule(engine, &reference)?;
    let text = match (&rule, args.format) {
        (Some(rule), Format::Json) => {
            let what = json!({
                "name": reference, "policy": rule.file(), "scope": rule.scope(), "requirements": rule.requirements(),
                "possible": rule.check_possible().is_ok(),
            });
            format!("{what:#}\n")
        }
        (None, Format::Json) => format!("{:#}\n", json!({"name": reference, "policy": null})),
        (Some(rule), Format::Table) => {
            let mut lines = vec![format!("policy       {}", rule.file().display()), format!("scope        {}", rule.scope())];
            lines.extend(rule.requirements().iter().map(|requirement| format!("requirement  {requirement}")));
            lines.extend(
                rule.check_possible().err().map(|_| "             no image can fulfil this here: it is refused".to_owned()),
            );
            lines.join("\n") + "\n"
        }
        (None, Format::Table) => "there is no signature policy: every image is accepted\n".to_owned(),
    };
    crate::cli::print(&text)?;
    Ok(0)
}
