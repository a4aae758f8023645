//! What is read of a pull (`runtime.v1`, Kubernetes' api.proto); all else goes on as it is.

use prost::Message;

/// `PullImageRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    pub image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    pub auth: Option<AuthConfig>,
}

/// `ImageSpec`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ImageSpec {
    #[prost(string, tag = "1")]
    pub image: String,
}

/// `AuthConfig`. Not shown by `Debug`. `registry_token` (6) is not here: containerd does not use it either.
#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub struct AuthConfig {
    #[prost(string, tag = "1")]
    pub username: String,
    #[prost(string, tag = "2")]
    pub password: String,
    #[prost(string, tag = "3")]
    pub auth: String,
    #[prost(string, tag = "4")]
    pub server_address: String,
    #[prost(string, tag = "5")]
    pub identity_token: String,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AuthConfig({}, …)", self.username)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_published_protobuf_and_secrets_are_not_shown() {
        // The token of a registry (6) and the pod (3) are skipped.
        let bytes = b"\x0a\x03\x0a\x01i\x12\x12\x0a\x01u\x12\x01p\x1a\x01a\x22\x01s\x2a\x01t\x32\x01r\x1a\x00";
        let request = PullImageRequest::decode(&bytes[..]).unwrap();
        assert_eq!(format!("{:?}", request.auth), "Some(AuthConfig(u, …))");
        let (image, auth) = (request.image.unwrap(), request.auth.unwrap());
        let read = [&image.image, &auth.username, &auth.password, &auth.auth, &auth.server_address, &auth.identity_token];
        assert_eq!(read, ["i", "u", "p", "a", "s", "t"]);
        for cut in [&b"\x0a\x05i"[..], b"\x12\x02\x0a\x09"] {
            assert!(PullImageRequest::decode(cut).is_err());
        }
    }
}
