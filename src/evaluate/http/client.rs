//! The HTTP client: where a bearer token may go, and how long and how much an answer may be.

use std::env::VarError;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, DATE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Url};

use crate::config::{self, HttpConfig, TokenSource};
use crate::evaluate::judgement::{Judgement, Loss, Reaction};
use crate::evaluate::retry::parse_retry_after;
use crate::evaluate::text::shortened;
use crate::evaluate::{EvaluateError, Fault, FaultClass};

/// Before the token in its header.
const SCHEME: &str = "Bearer ";

/// Time and size limits of one exchange.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Limits {
    /// Until a connection stands.
    pub connect: Duration,
    /// A health check, capabilities, or a poll: whole exchange.
    pub short: Duration,
    /// Without a byte of an answer whose head has come.
    pub idle: Duration,
    /// What an endpoint gets beyond the timeout it was told, to say itself that it was too slow.
    pub grace: Duration,
    /// Largest answer in bytes; reading stops there.
    pub body: usize,
    /// Bytes of an error that are read: a document of the protocol, or the beginning of a text for people.
    pub error: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            short: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            grace: Duration::from_secs(60),
            body: 64 << 20,
            error: 4 << 20,
        }
    }
}

/// An answer, read whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub status: u16,
    pub retry_after: Option<Duration>,
    /// `x-should-retry`.
    pub should_retry: Option<bool>,
    pub location: Option<String>,
    pub body: Vec<u8>,
}

/// The client for one endpoint. Redirects are not followed (the token would go along), connections are not kept (an
/// evaluation takes long, and a server that closes an idle connection would look like one that died), and on loopback
/// no proxy from the environment comes in between.
#[derive(Clone, Debug)]
pub(super) struct HttpClient {
    client: Client,
    /// What [`bearer_token`] gave.
    token: Option<HeaderValue>,
}

impl HttpClient {
    /// For the endpoint at `url`.
    ///
    /// # Errors
    /// A configuration fault when TLS cannot be set up (no certificate store).
    pub(super) fn new(url: &Url, token: Option<&HeaderValue>, limits: &Limits) -> Result<Self, Fault> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Fails only when a provider is installed already, which serves as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let mut builder = Client::builder()
            .user_agent(concat!("evomerge/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(limits.connect)
            .tcp_keepalive(Duration::from_secs(30))
            .pool_max_idle_per_host(0);
        if is_loopback(url) {
            builder = builder.no_proxy();
        }
        if url.scheme() == "http" {
            // Never speaks TLS: works on machines without a certificate store.
            builder = builder.tls_certs_only([]);
        }
        let refuse = |error| Fault::configuration("http_client", format!("cannot set up HTTP: {}", causes(&error)));
        Ok(Self { client: builder.build().map_err(refuse)?, token: token.cloned() })
    }

    /// A request that carries the token.
    pub(super) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.client.request(method, url);
        match &self.token {
            Some(token) => request.header(AUTHORIZATION, token.clone()),
            None => request,
        }
    }

    /// Sends a request and reads the whole answer within `total`. What an error says of the token is redacted.
    ///
    /// # Errors
    /// A judgement of class infrastructure or resource: nobody listens, the connection died, too slow, too large.
    pub(super) async fn exchange(
        &self,
        request: RequestBuilder,
        total: Duration,
        limits: &Limits,
    ) -> Result<Answer, Judgement> {
        let mut answer = match tokio::time::timeout(total, read_answer(request, limits)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(too_slow(format!("no complete answer within {:.1} s", total.as_secs_f64()))),
        };
        if !matches!(answer.status, 200 | 202)
            && let Some(token) = self.token.as_ref().and_then(|token| token.as_bytes().strip_prefix(SCHEME.as_bytes()))
        {
            answer.body = redacted(&answer.body, token);
        }
        Ok(answer)
    }
}

/// The body of an error without the token: servers that show the request in their errors would bring it to terminals,
/// ledger and tables. One that is part of a longer word, or as short as a word of the error's own, was hardly meant.
fn redacted(body: &[u8], token: &[u8]) -> Vec<u8> {
    const REDACTED: &[u8] = b"[token]";
    const SHORTEST: usize = 8;
    let is_word = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let is_shown = |start: usize| {
        let before = &body[..start];
        (token.len() >= SHORTEST || before.ends_with(SCHEME.as_bytes()))
            && !is_word(before.last())
            && !is_word(body.get(start + token.len()))
    };
    let (mut redacted, mut at) = (Vec::with_capacity(body.len()), 0);
    while let Some(found) = body[at..].windows(token.len()).position(|window| window == token) {
        let start = at + found;
        redacted.extend_from_slice(&body[at..start]);
        redacted.extend_from_slice(if is_shown(start) { REDACTED } else { token });
        at = start + token.len();
    }
    redacted.extend_from_slice(&body[at..]);
    redacted
}

fn too_slow(detail: String) -> Judgement {
    Judgement::new(Reaction::Timeout, FaultClass::Resource, "timeout", detail)
}

async fn read_answer(request: RequestBuilder, limits: &Limits) -> Result<Answer, Judgement> {
    let mut response = request.send().await.map_err(|error| broken(&error))?;
    let header = |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
    let retry_after = header(RETRY_AFTER).and_then(|value| parse_retry_after(value, header(DATE), Timestamp::now()));
    let should_retry = match header(HeaderName::from_static("x-should-retry")) {
        Some("true") => Some(true),
        Some("false") => Some(false),
        _ => None,
    };
    let location = header(LOCATION).map(str::to_owned);
    let status = response.status().as_u16();
    let too_large = || Judgement::retry("answer_too_large", format!("the answer is larger than {} bytes", limits.body));
    let is_error = !matches!(status, 200 | 202);
    if !is_error && response.content_length().is_some_and(|length| length > limits.body as u64) {
        return Err(too_large());
    }
    let mut body = Vec::new();
    loop {
        let chunk = tokio::time::timeout(limits.idle, response.chunk()).await.map_err(|_| {
            let seconds = limits.idle.as_secs_f64();
            Judgement::retry("answer_stalled", format!("the answer stopped: no byte of it for {seconds:.1} s"))
        })?;
        let Some(chunk) = chunk.map_err(|error| broken(&error))? else { break };
        if is_error && body.len() + chunk.len() > limits.error {
            // What is read says enough.
            body.extend(chunk.iter().take(limits.error - body.len()));
            break;
        }
        if body.len() + chunk.len() > limits.body {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, retry_after, should_retry, location, body })
}

/// The judgement on an exchange without an answer.
fn broken(error: &reqwest::Error) -> Judgement {
    let detail = causes(error);
    if error.is_connect() {
        Judgement::new(Reaction::Unreachable, FaultClass::Infrastructure, "unreachable", detail)
    } else {
        Judgement::lost(Loss::Connection, detail)
    }
}

/// An error with its causes: the top one alone says little.
fn causes(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let part = error.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = error.source();
    }
    shortened(&text)
}

/// An endpoint's address as a base to which paths are appended.
///
/// # Errors
/// Why it is none: anything but plain http and https addresses.
pub(super) fn endpoint_url(text: &str) -> Result<Url, String> {
    let mut url = config::endpoint_url(text).map_err(|reason| shortened(&reason))?;
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(url)
}

/// Whether the address is this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    host == "localhost" || literal_address(host).is_some_and(|address| address.is_loopback())
}

fn literal_address(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Whether two endpoints are one server of this machine, which has many names (`localhost`, `127.0.0.1`, `[::1]`): its
/// address tells. Elsewhere one address may serve several hosts.
pub(crate) fn is_same_server(first: &str, second: &str) -> bool {
    let (Some((first, addresses)), Some((second, others))) = (located(first), located(second)) else { return false };
    first.path() == second.path()
        && addresses.iter().any(|address| address.ip().is_loopback() && others.contains(address))
}

/// Where an endpoint is; `None` where nobody knows, which connecting to it will tell.
fn located(endpoint: &str) -> Option<(Url, Vec<SocketAddr>)> {
    let url = endpoint_url(endpoint).ok()?;
    // Other names are another matter: a proxy of this machine may tell its servers apart by them.
    let host = url.host_str()?;
    if host != "localhost" && literal_address(host).is_none() {
        return None;
    }
    let addresses = url.socket_addrs(|| None).ok()?;
    Some((url, addresses))
}

/// The bearer token as a header that no log shows; `None` where the run file names none.
///
/// # Errors
/// The setting at fault: variable unset, file readable by others, or an endpoint to which the token would travel in the
/// clear.
pub(super) fn bearer_token(config: &HttpConfig, urls: &[Url]) -> Result<Option<HeaderValue>, EvaluateError> {
    let Some(source) = &config.token else { return Ok(None) };
    let key = match source {
        TokenSource::Environment(_) => "token_env",
        TokenSource::File(_) => "token_file",
    };
    let refuse = |reason: String| EvaluateError::setting(key, reason);
    let token = match source {
        TokenSource::Environment(variable) => std::env::var(variable).map_err(|error| {
            let reason = if error == VarError::NotPresent { "is not set" } else { "holds no UTF-8 text" };
            refuse(format!("the environment variable {variable} {reason}"))
        })?,
        TokenSource::File(file) => token_of_file(file).map_err(refuse)?,
    };
    let token = token.trim();
    if token.is_empty() {
        return Err(refuse("the bearer token is empty".into()));
    }
    let in_the_clear = |url: &&Url| url.scheme() == "http" && !is_loopback(url);
    if let Some(url) = urls.iter().find(in_the_clear)
        && !config.allow_insecure_token
    {
        return Err(refuse(format!(
            "the token would go to {url} in the clear; use https, or set allow_insecure_token = true"
        )));
    }
    let mut value = HeaderValue::try_from(format!("{SCHEME}{token}"))
        .map_err(|_| refuse("the bearer token has characters that no HTTP header may hold".into()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn token_of_file(file: &Path) -> Result<String, String> {
    use std::os::unix::fs::PermissionsExt;
    let unreadable = |error: std::io::Error| format!("{}: {error}", file.display());
    let meta = std::fs::metadata(file).map_err(unreadable)?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!("{} is open to others (mode {mode:o}); run chmod 600 on it", file.display()));
    }
    std::fs::read_to_string(file).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OnTimeout;
    use std::num::NonZeroUsize;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    fn config(token_file: PathBuf, allow_insecure_token: bool) -> HttpConfig {
        HttpConfig {
            endpoints: vec![],
            token: Some(TokenSource::File(token_file)),
            allow_insecure_token,
            in_flight: NonZeroUsize::MIN,
            allow_different_fingerprints: false,
            on_timeout: OnTimeout::Worst,
        }
    }

    #[test]
    fn endpoints_are_bases() {
        assert_eq!(endpoint_url("http://127.0.0.1:8431").unwrap().join("v1/health").unwrap().path(), "/v1/health");
        assert_eq!(endpoint_url("https://lb/eval").unwrap().join("v1/health").unwrap().path(), "/eval/v1/health");
        for bad in ["127.0.0.1:8431", "ftp://x", "http://user:secret@host", "http://host?x=1", ""] {
            let reason = endpoint_url(bad).unwrap_err();
            assert!(!reason.is_empty() && !reason.contains("secret"), "{reason}");
        }
    }

    #[test]
    fn plain_http_needs_no_certificate_store() {
        let url = endpoint_url("http://127.0.0.1:1").unwrap();
        assert!(HttpClient::new(&url, None, &Limits::default()).is_ok());
    }

    #[test]
    fn a_token_in_an_error_is_redacted() {
        let seen = |body: &str, token: &str| String::from_utf8(redacted(body.as_bytes(), token.as_bytes())).unwrap();
        for (body, expected) in [
            ("Authorization: Bearer open-sesame; open-sesame", "Authorization: Bearer [token]; [token]"),
            ("open-sesame", "[token]"),
            ("reopen-sesame, open-sesames", "reopen-sesame, open-sesames"),
            ("nothing", "nothing"),
            ("", ""),
        ] {
            assert_eq!(seen(body, "open-sesame"), expected);
        }
        assert_eq!(seen("task acc: Bearer acc is wrong", "acc"), "task acc: Bearer [token] is wrong");
    }

    #[test]
    fn a_token_that_is_nowhere_is_told_once() {
        let token = Some(TokenSource::Environment("EVOMERGE_TEST_NO_SUCH_TOKEN".into()));
        let error = bearer_token(&HttpConfig { token, ..config(PathBuf::new(), false) }, &[]).unwrap_err();
        let expected = "`evaluator.token_env`: the environment variable EVOMERGE_TEST_NO_SUCH_TOKEN is not set";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn loopback_is_recognized() {
        for (url, loopback) in [
            ("http://127.0.0.1:1", true),
            ("http://[::1]:1", true),
            ("http://localhost", true),
            ("http://localhost.evil.example", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), loopback, "{url}");
        }
    }

    #[test]
    fn a_token_needs_a_private_file_and_a_private_way() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "sesame\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let local = [endpoint_url("http://127.0.0.1:1").unwrap()];
        let far = [endpoint_url("http://10.0.0.1:1").unwrap()];
        let open = bearer_token(&config(file.clone(), false), &local).unwrap_err().to_string();
        assert!(open.contains("mode 644") && !open.contains("sesame"), "{open}");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let token = bearer_token(&config(file.clone(), false), &local).unwrap().unwrap();
        assert_eq!(token.to_str().unwrap(), "Bearer sesame");
        assert!(!format!("{token:?}").contains("sesame"));
        assert!(bearer_token(&config(file.clone(), false), &far).is_err());
        assert!(bearer_token(&config(file, true), &far).unwrap().is_some());
    }
}
