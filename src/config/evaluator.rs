//! `[evaluator]`: what scores the candidates.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use reqwest::Url;

use super::values::{named, one_of, read_duration, read_positive_duration};
use super::{
    CommandConfig, EvaluatorConfig, EvaluatorKind, FunctionConfig, HttpConfig, NativeConfig, OnTimeout, Patience,
    TestFunction, TokenSource,
};
use crate::document::{Field, FieldError, Fields};

const KINDS: [&str; 4] = ["native", "http", "command", "function"];

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);
const DEFAULT_STARTUP_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_MAX_OUTAGE: Duration = Duration::from_secs(12 * 60 * 60);
const DEFAULT_MAX_ATTEMPTS: u32 = 5;
const DEFAULT_BATCH: NonZeroUsize = NonZeroUsize::new(64).unwrap();
const DEFAULT_MAX_NEW_TOKENS: usize = 64;
const DEFAULT_FUNCTION_SAMPLES: u64 = 100;
/// Evaluations that one evaluator may be asked for at once.
const MOST_IN_FLIGHT: usize = 10_000;
/// Programs that a `command` evaluator may run at once: each takes a process, two threads and a pipe of this machine,
/// and of the threads for what blocks (`cli::runtime`) some must be left for merges.
const MOST_PROGRAMS: usize = 256;
/// More than any machine has cores: they only cost memory and time.
pub(crate) const MOST_THREADS: usize = 4096;
/// Samples of a landscape: their ids are held in memory.
const MOST_FUNCTION_SAMPLES: u64 = 10_000_000;

pub(super) fn read(field: &Field<'_>, directory: &Path) -> Result<EvaluatorConfig, FieldError> {
    let mut fields = field.fields()?;
    let kind_field = fields.require("kind", "native, http, command or function")?;
    if kind_field.word()? == "openai" {
        return Err(kind_field.error(format!("this build has no `openai` evaluator; use {}", KINDS.join(", "))));
    }
    let kind = match one_of(&kind_field, &KINDS)? {
        "native" => EvaluatorKind::Native(read_native(&mut fields)?),
        "http" => EvaluatorKind::Http(read_http(&mut fields, directory)?),
        "command" => EvaluatorKind::Command(read_command(&mut fields, directory)?),
        _ => EvaluatorKind::Function(read_function(&mut fields)?),
    };
    let patience = read_patience(&mut fields)?;
    fields.finish()?;
    Ok(EvaluatorConfig { kind, patience })
}

fn read_patience(fields: &mut Fields<'_>) -> Result<Patience, FieldError> {
    let mut duration = |key, default| fields.take(key).map_or(Ok(default), |field| read_positive_duration(&field));
    let timeout = duration("timeout", DEFAULT_TIMEOUT)?;
    let startup_timeout = duration("startup_timeout", DEFAULT_STARTUP_TIMEOUT)?;
    let max_outage = duration("max_outage", DEFAULT_MAX_OUTAGE)?;
    let max_attempts = match fields.take("max_attempts") {
        None => DEFAULT_MAX_ATTEMPTS,
        Some(field) => u32::try_from(field.count()?.get()).map_err(|_| field.error("is too large"))?,
    };
    Ok(Patience { timeout, startup_timeout, max_outage, max_attempts })
}

fn read_in_flight(fields: &mut Fields<'_>, most: usize) -> Result<NonZeroUsize, FieldError> {
    fields.take("in_flight").map_or(Ok(NonZeroUsize::MIN), |field| field.count_up_to(most))
}

fn read_truth(fields: &mut Fields<'_>, key: &'static str) -> Result<bool, FieldError> {
    fields.take(key).map_or(Ok(false), |field| field.truth())
}

fn read_native(fields: &mut Fields<'_>) -> Result<NativeConfig, FieldError> {
    Ok(NativeConfig {
        threads: fields.take("threads").map(|field| field.count_up_to(MOST_THREADS)).transpose()?,
        batch: fields.take("batch").map_or(Ok(DEFAULT_BATCH), |field| field.count())?,
        max_new_tokens: match fields.take("max_new_tokens") {
            None => DEFAULT_MAX_NEW_TOKENS,
            Some(field) => field.count()?.get(),
        },
    })
}

fn read_http(fields: &mut Fields<'_>, directory: &Path) -> Result<HttpConfig, FieldError> {
    let endpoints = read_endpoints(&fields.require("endpoints", "a list of URLs")?)?;
    let token = read_token(fields, directory)?;
    let allow_insecure_token = read_truth(fields, "allow_insecure_token")?;
    let in_flight = read_in_flight(fields, MOST_IN_FLIGHT)?;
    let allow_different_fingerprints = read_truth(fields, "allow_different_fingerprints")?;
    let on_timeout = match fields.take("on_timeout") {
        None => OnTimeout::default(),
        Some(field) => named(&field, &OnTimeout::ALL, OnTimeout::name)?,
    };
    Ok(HttpConfig { endpoints, token, allow_insecure_token, in_flight, allow_different_fingerprints, on_timeout })
}

fn read_token(fields: &mut Fields<'_>, directory: &Path) -> Result<Option<TokenSource>, FieldError> {
    let variable = fields.take("token_env").map(|field| read_variable(&field)).transpose()?;
    match (variable, fields.take("token_file")) {
        (Some(_), Some(file)) => Err(file.error("give either this or `token_env`")),
        (Some(variable), None) => Ok(Some(TokenSource::Environment(variable))),
        (None, Some(file)) => Ok(Some(TokenSource::File(directory.join(file.word()?)))),
        (None, None) => Ok(None),
    }
}

fn read_variable(field: &Field<'_>) -> Result<String, FieldError> {
    let name = field.word()?;
    if name.contains(['=', '\0']) || name.contains(char::is_whitespace) {
        return Err(field.error("must be the name of an environment variable (not the token itself)"));
    }
    Ok(name.to_owned())
}

/// The address of an eval endpoint.
///
/// # Errors
/// Why it is none.
pub(crate) fn endpoint_url(text: &str) -> Result<Url, String> {
    let url = match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.host_str().is_some() => url,
        Err(error) if text.contains("://") => return Err(format!("{text:?} is no URL: {error}")),
        Ok(_) | Err(_) => return Err(format!("{text:?} must start with http:// or https:// and name a host")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        // Without the text, which is logged.
        return Err("a URL must hold no credentials; use `token_env` or `token_file`".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{text:?} must end before `?` and `#`: paths are added to it"));
    }
    Ok(url)
}

/// URLs of eval endpoints, without a slash at the end.
pub(super) fn read_endpoints(field: &Field<'_>) -> Result<Vec<String>, FieldError> {
    let items = field.list()?;
    if items.is_empty() {
        return Err(field.error("at least one URL is needed"));
    }
    let mut endpoints = Vec::with_capacity(items.len());
    for item in items {
        let url = endpoint_url(item.word()?).map_err(|reason| item.error(reason))?;
        let endpoint = url.as_str().trim_end_matches('/').to_owned();
        if endpoints.contains(&endpoint) {
            return Err(item.error(format!("{endpoint} is listed twice; use `in_flight` for more evaluations at once")));
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

/// The program that an `argv` starts.
///
/// # Errors
/// It starts none, or one that is not told where its scores are read from.
pub(crate) fn program_of(argv: &[String]) -> Result<&str, String> {
    let program = argv.first().filter(|program| !program.trim().is_empty());
    let program = program.ok_or("must start with a program, followed by its arguments")?;
    if !argv.iter().any(|argument| argument.contains("{result_file}") || argument.contains("{result_dir}")) {
        return Err("must pass {result_file} or {result_dir}: scores are read from there".to_owned());
    }
    Ok(program)
}

fn read_command(fields: &mut Fields<'_>, directory: &Path) -> Result<CommandConfig, FieldError> {
    let field = fields.require("argv", "the program and its arguments, as a list")?;
    let argv: Vec<String> =
        field.list()?.iter().map(|item| item.text().map(str::to_owned)).collect::<Result<_, _>>()?;
    program_of(&argv).map_err(|reason| field.error(reason))?;
    Ok(CommandConfig {
        argv,
        in_flight: read_in_flight(fields, MOST_PROGRAMS)?,
        version: fields.take("version").map(|field| field.word().map(str::to_owned)).transpose()?,
        deterministic: read_truth(fields, "deterministic")?,
        directory: directory.to_owned(),
    })
}

fn read_function(fields: &mut Fields<'_>) -> Result<FunctionConfig, FieldError> {
    let function = named(
        &fields.require("name", "the landscape: sphere, rastrigin, ...")?,
        &TestFunction::ALL,
        TestFunction::name,
    )?;
    let samples = fields.take("samples").map_or(Ok(DEFAULT_FUNCTION_SAMPLES), |field| field.positive())?;
    let mut duration = |key| fields.take(key).map_or(Ok(Duration::ZERO), |field: Field<'_>| read_duration(&field));
    let latency = duration("latency")?;
    let latency_jitter = duration("latency_jitter")?;
    let mut number = |key| fields.take(key).map_or(Ok(0.0), |field: Field<'_>| field.number());
    let (noise, infeasible_rate, fault_rate) = (number("noise")?, number("infeasible_rate")?, number("fault_rate")?);
    let in_flight = read_in_flight(fields, MOST_IN_FLIGHT)?;
    let config =
        FunctionConfig { function, noise, samples, latency, latency_jitter, infeasible_rate, fault_rate, in_flight };
    config.check().map_err(|error| fields.located(error))?;
    Ok(config)
}

impl FunctionConfig {
    /// Looks whether every number is in its range.
    ///
    /// # Errors
    /// The first one that is not, by its key in `[evaluator]`.
    pub(crate) fn check(&self) -> Result<(), FieldError> {
        let refuse = |key: &str, reason: String| Err(FieldError::new(key, reason));
        if !(1..=MOST_FUNCTION_SAMPLES).contains(&self.samples) {
            return refuse("samples", format!("must be from 1 to {MOST_FUNCTION_SAMPLES}, but is {}", self.samples));
        }
        if !self.noise.is_finite() || self.noise < 0.0 {
            return refuse("noise", format!("must be a number of at least 0, but is {}", self.noise));
        }
        for (key, rate) in [("infeasible_rate", self.infeasible_rate), ("fault_rate", self.fault_rate)] {
            if !(0.0..=1.0).contains(&rate) {
                return refuse(key, format!("must be from 0 to 1, but is {rate}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::RunConfig;
    use super::*;

    const RUN: &str = "name = 'x'\nmodels = { base = 'b', sources = ['p', 'q'] }\nbudget = { evaluations = 9 }\n\
        space = { method = 'ties', genes = { weight = { low = 0, high = 1.5 }, density = { low = 0.1, high = 1 } } }\n\
        tasks = [{ name = 'y' }]\n[evaluator]\n";

    fn read_with(evaluator: &str) -> Result<RunConfig, super::super::ConfigError> {
        RunConfig::parse(&format!("{RUN}{evaluator}"), Path::new("/nowhere"))
    }

    #[test]
    fn programs_at_once_are_bounded_by_this_machines_threads_and_endpoints_are_not() {
        let program = |in_flight: usize| {
            format!("kind = 'command'\nargv = ['score', '{{result_file}}']\nin_flight = {in_flight}\n")
        };
        read_with(&program(256)).unwrap();
        let error = read_with(&program(257)).unwrap_err().to_string();
        assert!(error.contains("evaluator.in_flight") && error.contains("must be at most 256, but is 257"), "{error}");
        read_with("kind = 'http'\nendpoints = ['http://h:1']\nin_flight = 560\n").unwrap();
    }
}
