//! Where spans go and which, in the words of OpenTelemetry's specification ("Environment Variable Specification", "OpenTelemetry
//! Protocol Exporter"). This crate reads no environment: whoever starts the program hands a look-up over.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::context::Context;
use crate::registry::Proxies;

/// What a variable may hold at most, bytes.
const LONGEST: usize = 64 * 1024;

/// How spans are exported.
#[derive(Clone)]
pub struct Settings {
    /// Where they are posted to.
    pub url: String,
    /// What is sent along, such as a key of the collector. Not shown by `Debug`.
    pub headers: Vec<(String, String)>,
    /// What is said of this program.
    pub resource: BTreeMap<String, String>,
    /// Which are recorded.
    pub sampler: Sampler,
    /// How long a batch may take, tries again included.
    pub timeout: Duration,
    /// How long spans wait for company.
    pub delay: Duration,
    /// How many wait at most.
    pub queue: usize,
    /// How many go at once.
    pub batch: usize,
    /// Through whom the collector is reached.
    pub proxies: Proxies,
}

/// Which traces are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Whether the trace that a span continues has decided.
    pub by_parent: bool,
    /// Of all traces that begin here, this part.
    pub ratio: f64,
}

impl Sampler {
    /// Whether a span is recorded.
    pub fn records(&self, trace: u128, parent: Option<&Context>) -> bool {
        match parent {
            Some(parent) if self.by_parent => parent.sampled,
            // As other implementations do it, so that all decide alike about a trace: by its last 56 bits.
            _ => trace & ((1 << 56) - 1) < (self.ratio * (1_u64 << 56) as f64) as u128,
        }
    }
}

/// What an environment says.
#[derive(Debug, Default)]
pub struct Found {
    /// `None`: no spans.
    pub settings: Option<Settings>,
    /// What could not be understood; the rest holds without it.
    pub warnings: Vec<String>,
}

impl Settings {
    /// As the variables of an environment say it. `service` is the name where they have none.
    pub fn from_variables(service: &str, proxies: Proxies, variable: impl Fn(&str) -> Option<String>) -> Found {
        let mut found = Found::default();
        let given = |name: &str| variable(name).filter(|value| !value.trim().is_empty() && value.len() <= LONGEST);
        // What is said of traces goes before what is said of all signals.
        let exporter = |name: &str| {
            let traces = format!("OTEL_EXPORTER_OTLP_TRACES_{name}");
            given(&traces).map(|value| (traces, value)).or_else(|| {
                let all = format!("OTEL_EXPORTER_OTLP_{name}");
                given(&all).map(|value| (all, value))
            })
        };
        let is_off = given("OTEL_SDK_DISABLED").is_some_and(|value| value.trim().eq_ignore_ascii_case("true"));
        let Some((from, endpoint)) = exporter("ENDPOINT").filter(|_| !is_off) else { return found };
        match given("OTEL_TRACES_EXPORTER").as_deref().map(str::trim) {
            None | Some("otlp") => {}
            Some("none") => return found,
            Some(other) => {
                found.warnings.push(format!("OTEL_TRACES_EXPORTER={other}: only `otlp` and `none` are known; no spans"));
                return found;
            }
        }
        let url = if from.contains("TRACES") { endpoint } else { format!("{}/v1/traces", endpoint.trim_end_matches('/')) };
        if !reqwest::Url::parse(&url).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
            found.warnings.push(format!("{from}: it has to be http://HOST:PORT or https://HOST:PORT; no spans"));
            return found;
        }
        match exporter("PROTOCOL") {
            None => {}
            Some((_, protocol)) if protocol.trim() == "http/json" => {}
            Some((name, protocol)) if protocol.trim() == "http/protobuf" => {
                found
                    .warnings
                    .push(format!("{name}={protocol}: spans go as http/json, which collectors take at the same address"));
            }
            Some((name, protocol)) => {
                found.warnings.push(format!("{name}={protocol}: only http/json is spoken; no spans"));
                return found;
            }
        }
        if let Some((name, _)) = exporter("CERTIFICATE").or_else(|| exporter("CLIENT_CERTIFICATE")) {
            found.warnings.push(format!("{name} is not supported: the system's roots of trust (or SSL_CERT_FILE) are used"));
        }
        let mut resource = pairs(given("OTEL_RESOURCE_ATTRIBUTES"), "OTEL_RESOURCE_ATTRIBUTES", &mut found.warnings);
        if let Some(name) = given("OTEL_SERVICE_NAME") {
            resource.retain(|(key, _)| key != "service.name");
            resource.push(("service.name".into(), name.trim().into()));
        }
        let own = [("service.name", service), ("service.version", env!("CARGO_PKG_VERSION"))];
        let mut attributes: BTreeMap<String, String> = own.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        attributes.extend(resource);
        let headers = exporter("HEADERS");
        let name = headers.as_ref().map(|(name, _)| name.clone()).unwrap_or_default();
        let headers = pairs(headers.map(|(_, value)| value), &name, &mut found.warnings);
        let (queue, mut warnings) = (number(&given, "OTEL_BSP_MAX_QUEUE_SIZE", 2048), Vec::new());
        let mut take = |read: Result<u64, String>, usual: u64| {
            read.unwrap_or_else(|warning| {
                warnings.push(warning);
                usual
            })
        };
        let queue = take(queue, 2048).clamp(1, 1 << 16) as usize;
        let batch = take(number(&given, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512), 512).clamp(1, queue as u64) as usize;
        let delay = take(number(&given, "OTEL_BSP_SCHEDULE_DELAY", 5000), 5000).clamp(10, 600_000);
        let timeout = exporter("TIMEOUT").map(|(name, _)| number(&given, &name, 10_000));
        let timeout = take(timeout.unwrap_or(Ok(10_000)), 10_000).clamp(100, 60_000);
        found.warnings.extend(warnings);
        found.settings = Some(Self {
            url,
            headers,
            resource: attributes,
            sampler: sampler(&given, &mut found.warnings),
            timeout: Duration::from_millis(timeout),
            delay: Duration::from_millis(delay),
            queue,
            batch,
            proxies,
        });
        found
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("url", &self.url).field("sampler", &self.sampler).finish_non_exhaustive()
    }
}

fn number(given: &impl Fn(&str) -> Option<String>, name: &str, usual: u64) -> Result<u64, String> {
    match given(name) {
        None => Ok(usual),
        Some(text) => text.trim().parse().map_err(|_| format!("{name}={text}: not a number; it is {usual}")),
    }
}

/// `OTEL_TRACES_SAMPLER` with its argument.
fn sampler(given: &impl Fn(&str) -> Option<String>, warnings: &mut Vec<String>) -> Sampler {
    const RATIO: &str = "OTEL_TRACES_SAMPLER_ARG";
    let name = given("OTEL_TRACES_SAMPLER").map(|name| name.trim().to_owned());
    let (by_parent, kind) = match name.as_deref() {
        None => (true, "always_on"),
        Some(name) => name.strip_prefix("parentbased_").map_or((false, name), |kind| (true, kind)),
    };
    let ratio = match kind {
        "always_on" => 1.0,
        "always_off" => 0.0,
        "traceidratio" => match given(RATIO).map(|text| text.trim().parse::<f64>()) {
            None => 1.0,
            Some(Ok(ratio)) if (0.0..=1.0).contains(&ratio) => ratio,
            Some(_) => {
                warnings.push(format!("{RATIO} has to be between 0 and 1; all traces are recorded"));
                1.0
            }
        },
        _ => {
            warnings.push(format!("OTEL_TRACES_SAMPLER={} is not known; it is parentbased_always_on", name.unwrap_or_default()));
            return Sampler { by_parent: true, ratio: 1.0 };
        }
    };
    Sampler { by_parent, ratio }
}

/// `KEY=VALUE,…` with values in per cent encoding.
fn pairs(text: Option<String>, name: &str, warnings: &mut Vec<String>) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for pair in text.unwrap_or_default().split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let read = pair.split_once('=').map(|(key, value)| (key.trim(), decode(value.trim())));
        match read {
            Some((key, Some(value))) if !key.is_empty() => pairs.push((key.to_owned(), value)),
            // Not shown: it may be a secret.
            _ => warnings.push(format!("{name}: a part of it is not KEY=VALUE with per cent encoding, and is left out")),
        }
    }
    pairs
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let digit = |c: Option<u8>| char::from(c?).to_digit(16);
        decoded.push(match byte {
            b'%' => (digit(bytes.next())? * 16 + digit(bytes.next())?) as u8,
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Found {
        let look_up = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Settings::from_variables("towlined", Proxies::default(), look_up)
    }

    const ALL: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/");

    #[test]
    fn without_an_endpoint_there_are_no_spans() {
        for pairs in [
            &[][..],
            &[("OTEL_SERVICE_NAME", "x")],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")],
            &[ALL, ("OTEL_SDK_DISABLED", "True")],
            &[ALL, ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            let found = read(pairs);
            assert!(found.settings.is_none() && found.warnings.is_empty(), "{pairs:?}");
        }
    }

    #[test]
    fn endpoints_headers_and_resources_are_read() {
        let found = read(&[
            ALL,
            ("OTEL_SDK_DISABLED", "yes"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b%3D, x = y ,"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=no,host.name=h"),
            ("OTEL_SERVICE_NAME", "mine"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "700"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "3"),
        ]);
        assert_eq!(found.warnings, Vec::<String>::new());
        let settings = found.settings.unwrap();
        assert_eq!(settings.url, "http://c:4318/v1/traces");
        assert_eq!(settings.headers, [("api-key".into(), "a b=".into()), ("x".into(), "y".into())]);
        assert_eq!((settings.resource["service.name"].as_str(), settings.resource["host.name"].as_str()), ("mine", "h"));
        assert_eq!((settings.timeout, settings.queue, settings.batch), (Duration::from_millis(700), 3, 3));
        assert!(!format!("{settings:?}").contains("a b"));

        let found =
            read(&[ALL, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t/x"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]);
        assert_eq!(found.settings.unwrap().url, "https://t/x");
        assert_eq!(read(&[ALL]).settings.unwrap().resource["service.name"], "towlined");
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for (pair, goes_on, why) in [
            (("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "localhost:4318"), false, "has to be http://"),
            (("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://x"), false, "has to be http://"),
            (("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), false, "only http/json"),
            (("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"), true, "go as http/json"),
            (("OTEL_TRACES_EXPORTER", "zipkin"), false, "only `otlp`"),
            (("OTEL_EXPORTER_OTLP_HEADERS", "secret"), true, "not KEY=VALUE"),
            (("OTEL_EXPORTER_OTLP_HEADERS", "a=%f"), true, "not KEY=VALUE"),
            (("OTEL_EXPORTER_OTLP_HEADERS", "a=%ff"), true, "not KEY=VALUE"),
            (("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"), true, "not a number"),
            (("OTEL_BSP_SCHEDULE_DELAY", "-1"), true, "not a number"),
            (("OTEL_TRACES_SAMPLER", "jaeger_remote"), true, "is not known"),
            (("OTEL_EXPORTER_OTLP_CERTIFICATE", "/x"), true, "not supported"),
        ] {
            let found = read(&[ALL, pair]);
            assert_eq!(found.settings.is_some(), goes_on, "{pair:?}");
            assert!(found.warnings.len() == 1 && found.warnings[0].contains(why), "{pair:?}: {:?}", found.warnings);
            assert!(!found.warnings[0].contains("secret"));
        }
        let found = read(&[ALL, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")]);
        assert!(found.warnings[0].contains("between 0 and 1"));
    }

    #[test]
    fn samplers_decide() {
        let parent = |sampled| Some(Context { trace: 1, span: 1, sampled });
        let (low, high) = (1_u128 << 100 | 1 << 40, (1 << 56) - 1);
        for (name, argument, wanted) in [
            ("", "", [true, true, true, false]),
            ("always_on", "", [true, true, true, true]),
            ("always_off", "", [false, false, false, false]),
            ("parentbased_always_off", "", [false, false, true, false]),
            ("traceidratio", "0.5", [true, false, true, true]),
            ("parentbased_traceidratio", "0.5", [true, false, true, false]),
            ("parentbased_traceidratio", "", [true, true, true, false]),
        ] {
            let settings = read(&[ALL, ("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", argument)]).settings.unwrap();
            let records = |trace, parent: Option<Context>| settings.sampler.records(trace, parent.as_ref());
            let decided = [records(low, None), records(high, None), records(low, parent(true)), records(low, parent(false))];
            assert_eq!(decided, wanted, "{name} {argument}");
        }
    }
}
