//! `towline images pull`

use std::io::Read;
use std::path::Path;
use std::time::Instant;

use towline_lazyfs::daemon::protocol::{Credentials, Login, PullPolicy, PullRequest, PullUntil, Reply};
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::manifest::Platform;
use towline_lazyfs::reference::{Reference, RegistryReference};

use crate::cli::ps::Format;
use crate::credentials::Files;
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::timeline::Timeline;
use crate::timeline::step::{Step, size};
use crate::timeline::view::{Style, View};

/// Longest password or token that is read from standard input, bytes.
const MAX_SECRET: u64 = 64 * 1024;

/// Flags of `images pull`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Return as soon as containers can start; the rest is fetched in the background
    #[arg(long)]
    lazy: bool,
    #[command(flatten)]
    source: SourceArgs,
    /// How to show progress
    #[arg(long, value_enum, default_value = "auto", value_name = "STYLE")]
    progress: Style,
    /// How to print what was pulled
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Image: HOST/NAME:TAG, oci:DIR:TAG, oci-archive:FILE:TAG or docker-archive:FILE:NAME:TAG
    #[arg(value_name = "REF")]
    reference: String,
}

/// Flags about where an image comes from, which `run` has, too.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SourceArgs {
    /// OS/ARCHITECTURE[/VARIANT] instead of this machine's
    #[arg(long)]
    platform: Option<String>,
    /// Talk HTTP without TLS to the registry
    #[arg(long)]
    plain_http: bool,
    /// Credentials for the registry; other users of this machine can see them
    #[arg(long, value_name = "USER[:PASSWORD]", conflicts_with = "creds_stdin")]
    creds: Option<String>,
    /// Read USER:PASSWORD from standard input
    #[arg(long)]
    creds_stdin: bool,
}

/// Pulls an image and prints its name.
pub fn run(engine: &Engine, args: Args, begin: Instant) -> Outcome {
    let until = if args.lazy { PullUntil::Startable } else { PullUntil::Complete };
    let request = args.source.request(engine, &args.reference, until, PullPolicy::Always)?;
    let mut timeline = Timeline::new(begin, View::new(args.progress, true));
    timeline.step(Step::Begin { what: format!("pull {}", args.reference) });
    let pulled = engine.daemon()?.pull(request, &mut |event| timeline.event(event));
    if let Ok(Reply::Pulled { complete: true, .. }) = &pulled
        && !timeline.is_complete()
    {
        timeline.step(Step::Local { complete: true });
    }
    timeline.finish();
    match pulled? {
        Reply::Pulled { name, image, complete, .. } => {
            let row = engine.db()?.image(&image)?;
            if !complete && let Some(row) = row {
                crate::cli::warn(&format!(
                    "{name} can start; {} are fetched in the background",
                    size(row.bytes_total - row.bytes_local.min(row.bytes_total))
                ));
            }
            let text = match args.format {
                Format::Table => format!("{name}@{image}\n"),
                Format::Json => {
                    format!("{:#}\n", serde_json::json!({"name": name, "digest": image, "complete": complete}))
                }
            };
            crate::cli::print(&text)?;
            Ok(0)
        }
        other => Err(unexpected(&args.reference, &other)),
    }
}

/// What a daemon of another version might say.
pub fn unexpected(reference: &str, reply: &Reply) -> Failure {
    Error::new(Kind::BadInput, format!("pulling {reference}")).because(format!("towlined answered {reply:?}")).into()
}

impl SourceArgs {
    /// The daemon's request for an image.
    pub fn request(&self, engine: &Engine, text: &str, until: PullUntil, policy: PullPolicy) -> Result<PullRequest, Failure> {
        let reference = canonical(text)?;
        let credentials = match reference.parse() {
            Ok(Reference::Registry(registry)) => self.logins(engine, self.credentials()?.as_ref(), text, &registry)?,
            _ => Vec::new(),
        };
        Ok(PullRequest {
            reference,
            until,
            policy,
            platform: self.platform.clone(),
            manifest: None,
            credentials,
            settings: engine.settings.clone(),
            plain_http: self.plain_http,
            trace: engine.trace,
        })
    }

    /// The image of an index that was asked for.
    pub fn platform(&self) -> Result<Option<Platform>, Failure> {
        Ok(self.platform.as_deref().map(str::parse).transpose()?)
    }

    /// Whether registries are talked to without TLS.
    pub fn plain_http(&self) -> bool {
        self.plain_http
    }

    /// Credentials for the hosts that may be asked: those that the user gives are for the registry itself, others are read from where
    /// login tools keep them.
    pub fn logins(
        &self,
        engine: &Engine,
        given: Option<&Credentials>,
        text: &str,
        reference: &RegistryReference,
    ) -> Result<Vec<Login>, Failure> {
        let places = engine.registries();
        let searched = places.searched()?;
        if Reference::is_short(text) && !searched.is_empty() {
            return Err(Error::new(Kind::BadInput, format!("reading image reference {text}"))
                .because(format!("it names no registry, and registries.conf has other tools search {}", searched.join(", ")))
                .advise(format!("write {}/{text}, or docker.io/… for the Hub: towline does not guess", searched[0]))
                .into());
        }
        let files = Files::read(|name| std::env::var_os(name))?;
        let mut logins = Vec::new();
        let endpoints = places.endpoints(reference, self.plain_http)?;
        // The registry itself is asked last.
        let own = endpoints.len().saturating_sub(1);
        for (n, endpoint) in endpoints.into_iter().enumerate() {
            let credentials = match given {
                Some(given) if n == own => Some(given.clone()),
                _ => files.find(&endpoint.host, &endpoint.repository)?.map(|found| found.credentials),
            };
            let scope = format!("{}/{}", endpoint.host, endpoint.repository);
            logins.extend(credentials.map(|credentials| Login { scope, credentials }));
        }
        Ok(logins)
    }

    /// The credentials that were given.
    pub fn credentials(&self) -> Result<Option<Credentials>, Failure> {
        let text = match &self.creds {
            Some(text) => text.clone(),
            None if self.creds_stdin => {
                let mut text = String::new();
                let read = std::io::stdin().take(MAX_SECRET).read_to_string(&mut text);
                read.map_err(|e| Error::io("reading credentials from", "standard input", e))?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
            None => return Ok(None),
        };
        let (username, secret) = match text.split_once(':') {
            Some((user, secret)) => (user.to_owned(), secret.to_owned()),
            None => (text.clone(), ask_for_password(&text)?),
        };
        if username.is_empty() {
            return Err(crate::cli::bad_flag("--creds", ":…", "the user name is empty"));
        }
        Ok(Some(Credentials { username, secret }))
    }
}

/// Asks for a password on the terminal, without showing it.
fn ask_for_password(user: &str) -> Result<String, Failure> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    use std::io::{BufRead, Write};
    let failed = |e: std::io::Error| {
        Failure::from(Error::io("asking for the password of", user, e).advise("give USER:PASSWORD with --creds-stdin"))
    };
    let terminal = std::fs::File::options().read(true).write(true).open("/dev/tty").map_err(failed)?;
    let before = tcgetattr(&terminal).map_err(|e| failed(e.into()))?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    (&terminal).write_all(format!("password of {user}: ").as_bytes()).map_err(failed)?;
    tcsetattr(&terminal, OptionalActions::Flush, &silent).map_err(|e| failed(e.into()))?;
    let mut line = String::new();
    let read = std::io::BufReader::new((&terminal).take(MAX_SECRET)).read_line(&mut line);
    tcsetattr(&terminal, OptionalActions::Flush, &before).map_err(|e| failed(e.into()))?;
    (&terminal).write_all(b"\n").map_err(failed)?;
    read.map_err(failed)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// The canonical form of a reference; a relative layout directory is one of this command's working directory.
pub fn canonical(text: &str) -> Result<String, Failure> {
    let reference: Reference = text.parse().map_err(|e: towline_lazyfs::reference::NotAReference| {
        Error::new(Kind::BadInput, format!("reading image reference {text}"))
            .because(e)
            .advise("write HOST/NAME:TAG, oci:DIR:TAG, oci-archive:FILE:TAG or docker-archive:FILE:NAME:TAG")
    })?;
    let here = std::env::current_dir().map_err(|e| Error::io("reading", "the working directory", e))?;
    Ok(reference.absolute(Path::new(&here)).to_string())
}
