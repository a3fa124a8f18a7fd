//! The run file's text to [`RunConfig`]: name, seed, strategy, budget, candidates and output here, larger sections in
//! files of their own.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::values::{named, read_positive_duration};
use super::{
    BudgetConfig, CandidatesConfig, ConfigError, OutputConfig, RacingConfig, RepeatsConfig, RunConfig, SpaceConfig,
    StrategyConfig, StrategyKind, evaluator, models, space, tasks,
};
use crate::document::{Content, Field, FieldError, Node, text_of};

/// Most characters of a run's name, which also names a folder.
const LONGEST_NAME: usize = 100;

/// Evaluations that may be open at a time: as many as evaluations of one evaluator at once.
const MOST_LOOK_AHEAD: usize = 10_000;

impl RunConfig {
    /// Reads and checks a run file. Models and data are looked for, but not opened.
    ///
    /// # Errors
    /// When the file cannot be read or anything in it is wrong, with the key and its line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let bytes = std::fs::read(path).map_err(read)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = std::fs::canonicalize(directory).map_err(read)?;
        let config = text_of(bytes).map_err(ConfigError::from).and_then(|text| Self::parse(&text, &directory));
        config.map_err(|error| error.in_document(path.display().to_string()))
    }

    /// Reads and checks a run file's text; relative paths in it start at `directory`.
    ///
    /// # Errors
    /// When anything in it is wrong, with the key and its line.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, ConfigError> {
        let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        let node = Node::from_toml(text)?;
        read(&node, text, directory)
    }

    /// What is wrong with a key that another room checks, with its line.
    pub fn complaint(&self, path: &[&str], reason: String) -> FieldError {
        let line = Node::from_toml(&self.text).ok().and_then(|node| node.line_of(path));
        FieldError { key: path.join("."), line, reason }
    }

    /// How candidates race: as `[racing]` says, or by default where the budget counts samples.
    pub fn effective_racing(&self) -> Option<RacingConfig> {
        self.racing.clone().or_else(|| self.budget.samples.map(|_| RacingConfig::default()))
    }

    /// The search space; `None` where the strategy only makes soups.
    ///
    /// # Errors
    /// When the strategy needs a space and the file has no `[space]`.
    pub fn search_space(&self) -> Result<Option<&SpaceConfig>, ConfigError> {
        if self.strategy.kind.is_soup() {
            return Ok(None);
        }
        match &self.space {
            Some(space) => Ok(Some(space)),
            None => Err(missing_space(self.strategy.kind).into()),
        }
    }
}

fn missing_space(strategy: StrategyKind) -> FieldError {
    let soups: Vec<&str> =
        StrategyKind::ALL.into_iter().filter(|kind| kind.is_soup()).map(StrategyKind::name).collect();
    let reason =
        format!("missing: the strategy {strategy} needs a search space (only {} do without)", soups.join(" and "));
    FieldError::new("space", reason)
}

fn read(node: &Node, text: &str, directory: PathBuf) -> Result<RunConfig, ConfigError> {
    let root = node.root();
    let mut fields = root.fields()?;
    let name = read_name(&fields.require("name", "the name of the run, also of its folder")?)?;
    let seed = fields.take("seed").map_or(Ok(0), |field| field.unsigned())?;
    let evaluator = evaluator::read(&fields.require("evaluator", "what scores the candidates")?, &directory)?;
    let models_field = fields.require("models", "the models to merge (`sources`)")?;
    let models = models::read(&models_field, &directory)?;
    let strategy = read_strategy(fields.take("strategy").as_ref())?;
    let space = fields.take("space").map(|field| space::read(&field, &models)).transpose()?;
    let budget = read_budget(&fields.require("budget", "when to stop (`evaluations`, `wall_clock` or `samples`)")?)?;
    let racing = fields.take("racing").map(|field| read_racing(&field)).transpose()?;
    let repeats = read_repeats(fields.take("repeats"))?;
    let tasks_field = fields.require("tasks", "at least one [[tasks]] with a `name`")?;
    let tasks = tasks::read(&tasks_field, &directory, &evaluator.kind)?;
    let holdout = fields
        .take("holdout")
        .map(|field| tasks::read_holdout(&field, &directory, &evaluator.kind, &tasks))
        .transpose()?;
    let candidates = read_candidates(fields.take("candidates"), &directory)?;
    let output = read_output(fields.take("output"))?;
    fields.finish()?;
    Ok(RunConfig {
        name,
        seed,
        models,
        space,
        strategy,
        budget,
        racing,
        repeats,
        evaluator,
        tasks,
        holdout,
        candidates,
        output,
        text: text.to_owned(),
        directory,
    })
}

fn read_name(field: &Field<'_>) -> Result<String, FieldError> {
    let name = field.word()?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !name.chars().all(allowed) || name.starts_with(['.', '-']) {
        let reason = format!(
            "{name:?} cannot name a folder: use letters, digits, `.`, `_` and `-`, and start with none of `.` and `-`"
        );
        return Err(field.error(reason));
    }
    if name.len() > LONGEST_NAME {
        return Err(field.error(format!("is longer than {LONGEST_NAME} characters")));
    }
    Ok(name.to_owned())
}

fn read_strategy(field: Option<&Field<'_>>) -> Result<StrategyConfig, FieldError> {
    let mut strategy = StrategyConfig::default();
    let Some(field) = field else { return Ok(strategy) };
    for (key, field) in field.named()? {
        match key {
            "kind" => strategy.kind = named(&field, &StrategyKind::ALL, StrategyKind::name)?,
            "look_ahead" => strategy.look_ahead = Some(field.count_up_to(MOST_LOOK_AHEAD)?),
            _ => {
                strategy.settings.insert(key.to_owned(), to_toml(&field)?);
            }
        }
    }
    Ok(strategy)
}

/// A setting as the strategy will read it.
fn to_toml(field: &Field<'_>) -> Result<toml::Value, FieldError> {
    Ok(match &field.node.content {
        Content::Null => return Err(field.error("must have a value")),
        Content::Bool(truth) => toml::Value::Boolean(*truth),
        Content::Integer(number) => match i64::try_from(*number) {
            Ok(number) => toml::Value::Integer(number),
            Err(_) => return Err(field.error(format!("{number} is too large"))),
        },
        Content::Float(_) => toml::Value::Float(field.number()?),
        Content::Text(text) => toml::Value::String(text.clone()),
        Content::List(_) => toml::Value::Array(field.list()?.iter().map(to_toml).collect::<Result<_, _>>()?),
        Content::Table(_) => {
            let entries = field.named()?.into_iter();
            toml::Value::Table(
                entries
                    .map(|(key, field)| Ok((key.to_owned(), to_toml(&field)?)))
                    .collect::<Result<_, FieldError>>()?,
            )
        }
    })
}

fn read_budget(field: &Field<'_>) -> Result<BudgetConfig, FieldError> {
    let mut fields = field.fields()?;
    let positive = |field: Field<'_>| field.positive();
    let budget = BudgetConfig {
        evaluations: fields.take("evaluations").map(positive).transpose()?,
        wall_clock: fields.take("wall_clock").map(|field| read_positive_duration(&field)).transpose()?,
        samples: fields.take("samples").map(positive).transpose()?,
    };
    fields.finish()?;
    if budget == BudgetConfig::default() {
        return Err(field.error("needs a limit: `evaluations`, `wall_clock` or `samples`"));
    }
    Ok(budget)
}

fn read_racing(field: &Field<'_>) -> Result<RacingConfig, FieldError> {
    let mut fields = field.fields()?;
    let within = |field: Field<'_>, low: u64, high: u64| match field.unsigned()? {
        number if (low..=high).contains(&number) => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
        number => Err(field.error(format!("is {number}, expected a whole number from {low} to {high}"))),
    };
    let standard = RacingConfig::default();
    let racing = RacingConfig {
        rungs: fields.take("rungs").map(|field| within(field, 1, 8)).transpose()?,
        reduction: fields.take("reduction").map_or(Ok(standard.reduction), |field| within(field, 2, 16))?,
    };
    fields.finish()?;
    Ok(racing)
}

fn read_repeats(field: Option<Field<'_>>) -> Result<RepeatsConfig, FieldError> {
    let Some(field) = field else { return Ok(RepeatsConfig::default()) };
    let mut fields = field.fields()?;
    let repeats = RepeatsConfig {
        finalists: fields.take("finalists").map(|field| field.truth()).transpose()?,
        sentinel: fields.take("sentinel").map(|field| field.unsigned()).transpose()?,
    };
    fields.finish()?;
    Ok(repeats)
}

fn read_candidates(field: Option<Field<'_>>, directory: &Path) -> Result<CandidatesConfig, FieldError> {
    let Some(field) = field else { return Ok(CandidatesConfig { dir: None, slots: None }) };
    let mut fields = field.fields()?;
    let dir = match fields.take("dir") {
        None => None,
        Some(field) if field.word()? == "auto" => None,
        Some(field) => Some(directory.join(field.word()?)),
    };
    let slots: Option<NonZeroUsize> = fields.take("slots").map(|field| field.count()).transpose()?;
    fields.finish()?;
    Ok(CandidatesConfig { dir, slots })
}

fn read_output(field: Option<Field<'_>>) -> Result<OutputConfig, FieldError> {
    let Some(field) = field else { return Ok(OutputConfig::default()) };
    let mut fields = field.fields()?;
    let dtype = fields
        .take("dtype")
        .map(|field| field.word()?.parse().map_err(|reason: String| field.error(reason)))
        .transpose()?;
    fields.finish()?;
    Ok(OutputConfig { dtype })
}
