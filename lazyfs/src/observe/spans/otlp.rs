//! Spans as OTLP JSON: an `ExportTraceServiceRequest` of opentelemetry-proto, in the JSON mapping that "OTLP/HTTP" prescribes (ids in
//! hexadecimal, 64-bit numbers as text, enumerations as numbers).

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value as Json, json};

use super::{Ended, Kind, Value};

/// The body of one request.
pub(super) fn encode(resource: &BTreeMap<String, String>, spans: &[Ended]) -> Vec<u8> {
    let resource: Vec<Json> = resource.iter().map(|(key, value)| text(key, value)).collect();
    let scope = json!({ "name": "towline", "version": env!("CARGO_PKG_VERSION") });
    let spans: Vec<Json> = spans.iter().map(span).collect();
    let request = json!({
        "resourceSpans": [{ "resource": { "attributes": resource }, "scopeSpans": [{ "scope": scope, "spans": spans }] }],
    });
    request.to_string().into_bytes()
}

fn text(key: &str, value: &str) -> Json {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn span(ended: &Ended) -> Json {
    let attributes: Vec<Json> = ended
        .attributes
        .iter()
        .map(|(key, value)| match value {
            Value::Text(value) => text(key, value),
            Value::Number(number) => {
                let number = i64::try_from(*number).unwrap_or(i64::MAX);
                json!({ "key": key, "value": { "intValue": number.to_string() } })
            }
        })
        .collect();
    let mut json = json!({
        "traceId": format!("{:032x}", ended.context.trace),
        "spanId": format!("{:016x}", ended.context.span),
        "flags": 1,
        "name": ended.name,
        "kind": match ended.kind { Kind::Internal => 1, Kind::Client => 3 },
        "startTimeUnixNano": nanos(ended.begin),
        "endTimeUnixNano": nanos(ended.end),
        "attributes": attributes,
    });
    if let Some(parent) = ended.parent {
        json["parentSpanId"] = format!("{parent:016x}").into();
    }
    if let Some(error) = &ended.error {
        json["status"] = json!({ "code": 2, "message": error });
    }
    json
}

fn nanos(time: SystemTime) -> String {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

/// What a collector did not take of a request that it answered with success: how many spans, and why.
pub(super) fn rejected(answer: &[u8]) -> Option<(u64, String)> {
    let answer: Json = serde_json::from_slice(answer).ok()?;
    let partial = answer.get("partialSuccess")?;
    let number = &partial["rejectedSpans"];
    let number = number.as_u64().or_else(|| number.as_str()?.parse().ok()).unwrap_or(0);
    let why = partial["errorMessage"].as_str().unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect();
    (number > 0).then_some((number, why))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Context;
    use super::*;

    #[test]
    fn a_span_is_what_the_protocol_says() {
        let ended = Ended {
            context: Context { trace: 0xab, span: 0xcd, sampled: true },
            parent: Some(0xef),
            name: "fetch",
            kind: Kind::Client,
            begin: UNIX_EPOCH + Duration::from_nanos(5_000_000_007),
            end: UNIX_EPOCH + Duration::from_nanos(5_000_000_107),
            attributes: vec![("towline.origin", "demand".into()), ("towline.bytes", 12_u64.into()), ("big", u64::MAX.into())],
            content: None,
            error: Some("no answer".into()),
        };
        let resource = BTreeMap::from([("service.name".to_owned(), "towlined".to_owned())]);
        let encoded: Json = serde_json::from_slice(&encode(&resource, &[ended])).unwrap();
        let wanted = json!({ "resourceSpans": [{
            "resource": { "attributes": [{ "key": "service.name", "value": { "stringValue": "towlined" } }] },
            "scopeSpans": [{
                "scope": { "name": "towline", "version": env!("CARGO_PKG_VERSION") },
                "spans": [{
                    "traceId": "000000000000000000000000000000ab",
                    "spanId": "00000000000000cd",
                    "parentSpanId": "00000000000000ef",
                    "flags": 1,
                    "name": "fetch",
                    "kind": 3,
                    "startTimeUnixNano": "5000000007",
                    "endTimeUnixNano": "5000000107",
                    "attributes": [
                        { "key": "towline.origin", "value": { "stringValue": "demand" } },
                        { "key": "towline.bytes", "value": { "intValue": "12" } },
                        { "key": "big", "value": { "intValue": "9223372036854775807" } },
                    ],
                    "status": { "code": 2, "message": "no answer" },
                }],
            }],
        }]});
        assert_eq!(encoded, wanted);
    }

    #[test]
    fn answers_are_read() {
        for (answer, wanted) in [
            ("", None),
            ("{}", None),
            ("[1]", None),
            ("protobuf\0", None),
            (r#"{"partialSuccess":{}}"#, None),
            (r#"{"partialSuccess":{"rejectedSpans":"0","errorMessage":"be careful"}}"#, None),
            (r#"{"partialSuccess":{"rejectedSpans":3}}"#, Some((3, ""))),
            (r#"{"partialSuccess":{"rejectedSpans":"4","errorMessage":"too\nold"}}"#, Some((4, "tooold"))),
            (r#"{"partialSuccess":{"rejectedSpans":-1}}"#, None),
        ] {
            assert_eq!(rejected(answer.as_bytes()), wanted.map(|(n, why)| (n, why.to_owned())), "{answer}");
        }
    }
}
