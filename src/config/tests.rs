//! Run files, right and wrong.

use std::path::Path;
use std::time::Duration;

use super::*;

/// A folder with two sources, a base and data.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for model in ["base", "expert-add", "expert-rev", "sweep/run-1", "sweep/run-10", "sweep/run-2", "sweep/.hidden"] {
        std::fs::create_dir_all(folder.path().join(model)).unwrap();
    }
    std::fs::write(folder.path().join("sweep/notes.txt"), "").unwrap();
    for data in ["add.val.jsonl", "add.test.jsonl"] {
        std::fs::write(folder.path().join(data), "{}\n").unwrap();
    }
    folder
}

const RUN: &str = r#"
name = "tiny-llama"
seed = 7

[models]
base = "base"
sources = ["expert-add", "expert-rev"]

[space]
method = "dare_ties"
layer_groups = 3
modules = ["self_attn", "mlp"]
interpolate = false
[space.genes]
weight    = { low = 0.0, high = 1.5, per = ["model", "layer_group", "module"], models = { "expert-add" = 0.5 } }
drop_rate = { low = 0.0, high = 0.95, per = ["model"] }
lambda    = 1.0
normalize = true

[strategy]
kind = "genetic"
look_ahead = 4
population = 20

[budget]
evaluations = 300
wall_clock = "1h30m"

[evaluator]
kind = "native"

[[tasks]]
name = "add"
data = "add.val.jsonl"
metric = "exact_match"
weight = 1.0
goal = "maximize"

[holdout]
tasks = { add = { data = "add.test.jsonl" } }

[candidates]
dir = "auto"
slots = 3

[output]
dtype = "bfloat16"
"#;

fn parse(text: &str) -> Result<RunConfig, ConfigError> {
    RunConfig::parse(text, folder().path())
}

/// `RUN` with one piece replaced.
fn changed(from: &str, to: &str) -> String {
    assert!(RUN.contains(from), "{from}");
    RUN.replace(from, to)
}

fn refused(text: &str) -> String {
    let error = parse(text).expect_err(text);
    assert_eq!(error.exit_code(), crate::exit::ExitCode::BadConfiguration);
    error.to_string()
}

#[test]
fn reads_a_whole_run_file() {
    let folder = folder();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, RUN).unwrap();
    let config = RunConfig::load(&path).unwrap();
    assert_eq!((config.name.as_str(), config.seed), ("tiny-llama", 7));
    assert_eq!(config.models.sources[1].name, "expert-rev");
    assert!(Path::new(&config.models.sources[1].location).is_absolute());
    let space = config.search_space().unwrap().unwrap();
    assert_eq!(space.methods, ["dare_ties"]);
    let names: Vec<_> = space.genes.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["weight", "drop_rate", "lambda", "normalize"]);
    let GeneConfig::Search(weight) = &space.genes[0].1 else { panic!("{space:?}") };
    assert_eq!(weight.per, [GenePer::Model, GenePer::LayerGroup, GenePer::Module]);
    assert_eq!(weight.models["expert-add"], 0.5);
    assert_eq!(space.genes[3].1, GeneConfig::Bool(true));
    assert_eq!(config.budget.wall_clock, Some(Duration::from_secs(5400)));
    assert_eq!(config.strategy.settings["population"], toml::Value::Integer(20));
    assert_eq!(config.holdout.unwrap().finalists.get(), 5);
    assert_eq!(config.output.dtype, Some(Dtype::Bfloat16));
    assert_eq!(config.text, RUN);
}

#[test]
fn finds_sources_by_pattern_in_natural_order() {
    let text = changed(r#"["expert-add", "expert-rev"]"#, r#"{ glob = "sweep/*" }"#)
        .replace(r#", models = { "expert-add" = 0.5 }"#, "");
    let names: Vec<_> = parse(&text).unwrap().models.sources.into_iter().map(|source| source.name).collect();
    assert_eq!(names, ["run-1", "run-2", "run-10"]);
    let message = refused(&text.replace("sweep/*", "sweeps/*"));
    assert!(message.contains("`models.sources.glob`") && message.contains("sweeps/*"), "{message}");
}

/// `RUN` with these sources; the folder has two adapters and a model with a `+` in its name.
fn with_sources(models: &str) -> Result<RunConfig, ConfigError> {
    let folder = folder();
    for adapter in ["adapters/fr", "adapters/de", "other/de"] {
        std::fs::create_dir_all(folder.path().join(adapter)).unwrap();
        std::fs::write(folder.path().join(adapter).join("adapter_config.json"), "{}").unwrap();
    }
    std::fs::create_dir_all(folder.path().join("c++/m+n")).unwrap();
    let text = changed(r#"base = "base""#, "").replace(r#"sources = ["expert-add", "expert-rev"]"#, models);
    RunConfig::parse(&text.replace(r#", models = { "expert-add" = 0.5 }"#, ""), folder.path())
}

#[test]
fn sources_may_be_adapters_over_models() {
    let sources = |models: &str| -> Vec<(String, String, Option<String>)> {
        let last = |path: &str| path.rsplit('/').next().unwrap().to_owned();
        let models = with_sources(models).unwrap().models.sources;
        models
            .into_iter()
            .map(|source| (source.name, last(&source.location), source.adapter.map(|path| last(&path))))
            .collect()
    };
    let expected =
        |name: &str, model: &str, adapter: Option<&str>| (name.into(), model.into(), adapter.map(Into::into));
    let base = r#"base = "base"
"#;
    let [fr, de] = ["fr", "de"].map(|name| expected(name, "base", Some(name)));
    assert_eq!(sources(&format!(r#"{base}sources = ["base+adapters/fr", "adapters/de"]"#)), [fr.clone(), de.clone()]);
    assert_eq!(sources(&format!(r#"{base}sources = {{ glob = "adapters/*" }}"#)), [de.clone(), fr.clone()]);
    assert_eq!(
        sources(&format!(r#"{base}sources = ["c++/m+n", "c++/m+n+adapters/fr"]"#))[..2],
        [expected("m+n", "m+n", None), expected("fr", "m+n", Some("fr"))]
    );
    assert_eq!(
        sources(&format!(r#"{base}sources = ["base+adapters/de", "base+other/de"]"#)),
        [expected("adapters/de", "base", Some("de")), expected("other/de", "base", Some("de"))]
    );
    let shared = with_sources(&format!(r#"{base}sources = ["base+adapters/de", "expert-add+adapters/de"]"#)).unwrap();
    let names: Vec<_> = shared.models.sources.iter().map(|source| source.name.as_str()).collect();
    assert_eq!(names, ["base+de", "expert-add+de"]);
    assert_eq!(
        sources(&format!(r#"{base}sources = ["org/model+org/adapter"]"#)),
        [expected("adapter", "model", Some("adapter"))]
    );
}

#[test]
fn adapters_without_their_model_are_refused() {
    for (models, words) in [
        (r#"sources = ["adapters/fr"]"#, vec!["`models.sources[0]`", "\"MODEL+adapters/fr\"", "models.base"]),
        (
            r#"base = "adapters/fr"
sources = ["expert-add"]"#,
            vec!["`models.base`", "\"MODEL+adapters/fr\""],
        ),
        (
            r#"base = "base+adapters/fr"
sources = ["adapters/de"]"#,
            vec!["`models.sources[0]`", "has one already"],
        ),
        (
            r#"base = "base"
sources = ["base+"]"#,
            vec!["`models.sources[0]`", "both sides"],
        ),
        (
            r#"base = "base"
sources = ["adapters/fr", "base+adapters/fr"]"#,
            vec!["`models.sources[1]`", "same model"],
        ),
    ] {
        let text = with_sources(models).expect_err(models).to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}

#[test]
fn a_required_parameter_without_a_gene_is_searched_over_its_range() {
    let genes = RUN.find("[space.genes]").unwrap();
    let end = RUN.find("[strategy]").unwrap();
    let config = parse(&format!("{}{}", &RUN[..genes], &RUN[end..])).unwrap();
    let space = config.space.unwrap();
    let [(name, GeneConfig::Search(weight))] = space.genes.as_slice() else { panic!("{space:?}") };
    assert_eq!((name.as_str(), weight.low, weight.high), ("weight", 0.0, 1.5));
    assert_eq!(weight.per, [GenePer::Model, GenePer::LayerGroup, GenePer::Module]);
}

#[test]
fn soups_need_no_space() {
    let start = RUN.find("[space]").unwrap();
    let end = RUN.find("[strategy]").unwrap();
    let without = format!("{}{}", &RUN[..start], &RUN[end..]);
    // `evomerge soup` makes soups of any run file: only who searches the space misses it.
    let message = parse(&without).unwrap().search_space().unwrap_err().to_string();
    assert!(message.contains("`space`") && message.contains("genetic"), "{message}");
    let config = parse(&without.replace("genetic", "greedy-soup")).unwrap();
    assert_eq!(config.search_space().unwrap(), None);
    let bare = without.replace("[strategy]\nkind = \"genetic\"\nlook_ahead = 4\npopulation = 20\n", "");
    let error = parse(&bare).unwrap().search_space().unwrap_err().to_string();
    assert!(error.contains("`space`"), "{error}");
}

#[test]
fn mistakes_are_named_with_their_key() {
    for (from, to, words) in [
        ("seed = 7", "sead = 7", vec!["line 3", "`sead`", "did you mean `seed`?"]),
        ("seed = 7", "seed = -7", vec!["`seed`", "-7"]),
        ("name = \"tiny-llama\"", "name = \"tiny/llama\"", vec!["`name`", "tiny/llama"]),
        ("name = \"tiny-llama\"", "", vec!["`name`", "missing"]),
        ("base = \"base\"", "", vec!["`models.base`", "dare_ties"]),
        ("sources = [", "surces = [", vec!["`models.sources`", "missing", "surces"]),
        ("[\"expert-add\", \"expert-rev\"]", "[]", vec!["`models.sources`", "at least one"]),
        ("\"expert-rev\"]", "\"./expert-add\"]", vec!["`models.sources[1]`", "same model"]),
        ("dare_ties", "dare_tied", vec!["`space.method`", "did you mean `dare_ties`?"]),
        ("method = \"dare_ties\"", "method = [\"ties\", \"ties\"]", vec!["`space.method[1]`", "twice"]),
        ("layer_groups = 3", "layer_group = 3", vec!["`space.layer_group`", "did you mean `layer_groups`?"]),
        ("layer_groups = 3", "layer_groups = 0", vec!["`space.layer_groups`", "at least 1"]),
        ("layer_groups = 3", "layer_groups = 3\ngranularity = 2", vec!["`space.granularity`", "layer_groups"]),
        ("[\"self_attn\", \"mlp\"]", "[\"mlp\", \"mlp.up\"]", vec!["`space.modules`", "never reached"]),
        ("lambda    = 1.0", "lamda = 1.0", vec!["`space.genes.lamda`", "did you mean `lambda`?"]),
        ("lambda    = 1.0", "t = 1.0", vec!["`space.genes.t`", "dare_ties"]),
        ("lambda    = 1.0", "density = 0.5", vec!["`space.genes.density`", "drop_rate"]),
        ("lambda    = 1.0", "lambda = { per = [\"model\"] }", vec!["`space.genes.lambda.per[0]`", "all models"]),
        ("lambda    = 1.0", "lambda = { low = 2, high = 1 }", vec!["`space.genes.lambda`", "below"]),
        ("lambda    = 1.0", "lambda = { low = 0, scale = \"log\" }", vec!["`space.genes.lambda.scale`", "above 0"]),
        ("lambda    = 1.0", "lambda = { same_as = \"wieght\" }", vec!["`space.genes.lambda.same_as`", "`weight`"]),
        ("lambda    = 1.0", "lambda = { same_as = \"weight\" }", vec!["`space.genes.lambda.same_as`", "for all"]),
        ("lambda    = 1.0", "lambda = { init = 9 }", vec!["`space.genes.lambda.init`", "9"]),
        (
            "lambda    = 1.0",
            "lambda = { conflict_prior = 1 }",
            vec!["`space.genes.lambda.conflict_prior`", "for `weight`"],
        ),
        ("high = 1.5, per", "conflict_prior = 5, per", vec!["`space.genes.weight.conflict_prior`", "from 0 to 4"]),
        ("high = 1.5, per", "conflict_prior = nan, per", vec!["`space.genes.weight.conflict_prior`"]),
        ("high = 1.5, per", "conflict_prior = 'on', per", vec!["`space.genes.weight.conflict_prior`", "number"]),
        ("high = 1.5, per", "high = 2, integer = true, conflict_prior = 1, per", vec!["conflict_prior`", "`integer`"]),
        (
            "high = 1.5, per = [\"model\", \"layer_group\", \"module\"], models = { \"expert-add\" = 0.5 }",
            "conflict_prior = 1, per = [\"module\"]",
            vec!["`space.genes.weight.conflict_prior`", "\"layer_group\""],
        ),
        ("lambda    = 1.0", "lambda = { step = 1 }", vec!["`space.genes.lambda.step`", "unknown"]),
        ("normalize = true", "normalize = 0.5", vec!["`space.genes.normalize`", "true or false"]),
        ("\"expert-add\" = 0.5", "\"expert-ad\" = 0.5", vec!["`space.genes.weight.models.expert-ad`", "`expert-add`"]),
        ("high = 0.95", "high = 1.95", vec!["`space.genes.drop_rate.high`", "from 0 to 1"]),
        ("kind = \"genetic\"", "kind = \"genetics\"", vec!["`strategy.kind`", "did you mean `genetic`?"]),
        ("evaluations = 300\nwall_clock = \"1h30m\"", "", vec!["`budget`", "limit"]),
        ("evaluations = 300", "evaluations = 0", vec!["`budget.evaluations`", "at least 1"]),
        ("evaluations = 300", "evaluations = -5", vec!["`budget.evaluations`: must be at least 1, not -5"]),
        ("look_ahead = 4", "look_ahead = 10001", vec!["`strategy.look_ahead`", "at most 10000"]),
        ("weight = 1.0", "limit = 1099511627777", vec!["`tasks[0].limit`", "at most 1099511627776"]),
        ("weight = 1.0", "limit = 0", vec!["`tasks[0].limit`", "at least 1"]),
        ("lambda    = 1.0", "lambda = { low = -1e308, high = 1e308 }", vec!["`space.genes.lambda`", "too large"]),
        ("seed = 7", "seed = 7\nseed = 8", vec!["line 4", "the key `seed` is there twice"]),
        ("\"1h30m\"", "\"90 minutes\"", vec!["`budget.wall_clock`", "90 minutes"]),
        ("\"1h30m\"", "90", vec!["`budget.wall_clock`", "quotes"]),
        ("kind = \"native\"", "kind = \"openai\"", vec!["`evaluator.kind`", "this build"]),
        ("kind = \"native\"", "kind = \"native\"\nendpoints = []", vec!["`evaluator.endpoints`", "unknown"]),
        (
            "kind = \"native\"",
            "kind = \"http\"\nendpoints = [\"127.0.0.1:1\"]",
            vec!["`evaluator.endpoints[0]`: \"127.0.0.1:1\" must start with http:// or https://"],
        ),
        (
            "kind = \"native\"",
            "kind = \"http\"\nendpoints = [\"http://u:p@h/\"]",
            vec!["`evaluator.endpoints[0]`", "credentials"],
        ),
        ("kind = \"native\"", "kind = \"command\"\nargv = [\"x\"]", vec!["`evaluator.argv`", "{result_file}"]),
        ("kind = \"native\"", "kind = \"function\"\nname = \"spere\"", vec!["`evaluator.name`", "sphere"]),
        (
            "kind = \"native\"",
            "kind = \"function\"\nname = \"sphere\"\nsamples = 10000001",
            vec!["line 32: `evaluator.samples`: must be from 1 to 10000000"],
        ),
        (
            "kind = \"native\"",
            "kind = \"function\"\nname = \"sphere\"\nfault_rate = 1.5",
            vec!["`evaluator.fault_rate`: must be from 0 to 1"],
        ),
        ("kind = \"native\"", "kind = \"command\"\nargv = [\" \"]", vec!["`evaluator.argv`", "start with a program"]),
        ("data = \"add.val.jsonl\"", "", vec!["`tasks[0].data`", "missing"]),
        ("weight = 1.0", "weight = 0.0", vec!["`tasks`", "`weight`"]),
        ("weight = 1.0", "weight = inf", vec!["`tasks[0].weight`", "finite"]),
        ("goal = \"maximize\"", "goal = \"max\"", vec!["`tasks[0].goal`", "maximize"]),
        ("{ add = { data", "{ ad = { data", vec!["`holdout.tasks.ad`", "did you mean `add`?"]),
        ("add.test.jsonl", "add.val.jsonl", vec!["`holdout.tasks.add.data`", "prove nothing"]),
        (
            "tasks = { add = { data = \"add.test.jsonl\" } }",
            "fraction = 1.0",
            vec!["`holdout.fraction`", "between 0 and 1"],
        ),
        ("tasks = { add = { data = \"add.test.jsonl\" } }", "finalists = 2", vec!["`holdout`", "fraction"]),
        ("slots = 3", "slots = \"3\"", vec!["`candidates.slots`", "whole number"]),
        ("dtype = \"bfloat16\"", "dtype = \"bf16\"", vec!["`output.dtype`", "bfloat16"]),
    ] {
        let message = refused(&changed(from, to));
        for word in words {
            assert!(message.contains(word), "{to}: {message} lacks {word}");
        }
    }
}

#[test]
fn task_data_that_is_not_there_is_bad_data() {
    for (from, to, words) in [
        ("add.val.jsonl", "sub.val.jsonl", "`tasks[0].data`: no such file"),
        ("add.val.jsonl", "base", "`tasks[0].data`: not a file"),
        ("add.test.jsonl", "sub.test.jsonl", "`holdout.tasks.add.data`: no such file"),
    ] {
        let error = parse(&changed(from, to)).expect_err(to);
        assert_eq!(error.exit_code(), crate::exit::ExitCode::BadData);
        let text = error.in_document("run.toml".to_owned()).to_string();
        assert!(text.starts_with("run.toml: line ") && text.contains(words), "{text}");
    }
}

#[test]
fn a_run_file_that_is_not_utf8_says_where() {
    let folder = folder();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, b"name = \"x\"\nseed = 1 # \xe9\n").unwrap();
    let text = RunConfig::load(&path).unwrap_err().to_string();
    assert!(text.contains("run.toml: line 2: not UTF-8 text: byte 22"), "{text}");
}

#[test]
fn two_tasks_need_two_names() {
    let message = refused(&format!("{RUN}\n[[tasks]]\nname = \"add\"\ndata = \"add.val.jsonl\"\n"));
    assert!(message.contains("`tasks[1]`") && message.contains("add"), "{message}");
}

#[test]
fn slerp_needs_two_models_and_landscapes_need_none_on_disk() {
    let text = |sources: &str, evaluator: &str| {
        format!(
            "name = 'x'\nmodels = {{ sources = {sources} }}\nspace = {{ method = 'slerp' }}\nbudget = {{ evaluations = 9 }}\n\
             tasks = [{{ name = 'y' }}]\n[evaluator]\n{evaluator}\n"
        )
    };
    let function = "kind = 'function'\nname = 'sphere'\nnoise = 0.1\nlatency = '5ms'";
    assert!(parse(&text("['../a', '../b', 'c']", function)).is_ok());
    let message = refused(&text("['a']", function));
    assert!(message.contains("`space.method`") && message.contains("slerp takes 2 models"), "{message}");
}

#[test]
fn a_prior_needs_a_base_and_is_part_of_the_identity() {
    let text = changed("high = 1.5,", "high = 1.5, conflict_prior = 0.5,");
    let (before, after) = (parse(RUN).unwrap(), parse(&text).unwrap());
    assert!(!before.space.as_ref().unwrap().has_conflict_prior() && after.space.as_ref().unwrap().has_conflict_prior());
    let found = differences(&before.identity()["space"], &after.identity()["space"]);
    assert_eq!(
        found.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["genes.weight.conflict_prior: (absent) -> 0.5"]
    );
    let message =
        refused(&text.replace("base = \"base\"\n", "").replace("dare_ties", "linear").replace("drop_rate", "# "));
    assert!(message.contains("conflict_prior`") && message.contains("`models.base`"), "{message}");
}

#[test]
fn a_holdout_on_an_endpoint_of_the_search_is_refused() {
    let run = |holdout: &str| {
        format!(
            "name = 'x'\nmodels = {{ base = 'base', sources = ['expert-add', 'expert-rev'] }}\nbudget = {{ evaluations = 9 }}\n\
             space = {{ method = 'linear' }}\ntasks = [{{ name = 'y' }}]\nholdout = {{ endpoints = ['{holdout}'] }}\n\
             [evaluator]\nkind = 'http'\nendpoints = ['http://h:1', 'http://h:2']\n"
        )
    };
    assert!(parse(&run("http://h:3")).is_ok());
    let message = refused(&run("http://h:2/"));
    assert!(
        message.contains("`holdout.endpoints`") && message.contains("http://h:2 is an endpoint of the search"),
        "{message}"
    );
}

#[test]
fn stacks_are_read() {
    let run = |space: &str| {
        format!(
            "name = 'x'\nmodels = {{ base = 'base', sources = ['expert-add', 'expert-rev'] }}\nbudget = {{ evaluations = 9 }}\n\
             tasks = [{{ name = 'y' }}]\nevaluator = {{ kind = 'function', name = 'sphere' }}\n[space]\n{space}\n"
        )
    };
    let stack = |space: &str| parse(&run(space)).unwrap().space.unwrap().stack.unwrap();
    let plain = stack("method = 'passthrough'\ngranularity = 2\nstack = {}");
    assert_eq!((plain.passes.get(), plain.max_layers, plain.blocks), (2, None, StackBlocks::Sources));
    assert_eq!(plain.scale, None);
    let scaled = stack(
        "method = 'passthrough'\nlayer_groups = 'auto'\nstack = { passes = 3, max_layers = 9, scale = { high = 0.9 } }",
    );
    let scale = scaled.scale.unwrap();
    assert_eq!((scaled.passes.get(), scaled.max_layers.unwrap().get()), (3, 9));
    assert_eq!((scale.low, scale.high, scale.init), (0.5, 0.9, 0.9));
    assert_eq!(scale.modules, ["o_proj", "down_proj"]);
    let merged = stack("method = ['linear', 'ties']\ngranularity = 2\nstack = { with_sources = true }");
    assert_eq!(merged.blocks, StackBlocks::MergedAndSources);
    assert_eq!(stack("method = 'slerp'\ngranularity = 2\nstack = {}").blocks, StackBlocks::Merged);

    for (space, words) in [
        ("method = 'passthrough'\ngranularity = 2\nstack = { pases = 3 }", ["`space.stack.pases`", "`passes`"]),
        ("method = 'passthrough'\ngranularity = 2\nstack = { passes = 0 }", ["`space.stack.passes`", "at least 1"]),
        ("method = 'passthrough'\ngranularity = 2\nstack = { passes = 17 }", ["`space.stack.passes`", "at most 16"]),
        ("method = 'passthrough'\nstack = {}", ["`space.stack`", "`space.granularity`"]),
        ("method = 'passthrough'\ngranularity = 2\ninterpolate = true\nstack = {}", ["`space.stack`", "interpolate"]),
        ("method = ['passthrough', 'ties']\ngranularity = 2\nstack = {}", ["`space.stack`", "stands alone"]),
        ("method = 'passthrough'\ngranularity = 2\nstack = { with_sources = false }", ["with_sources`", "nothing but"]),
        ("method = 'slerp'\ngranularity = 2\nstack = { with_sources = true }", ["with_sources`", "slerp"]),
        ("method = 'ties'\ngranularity = 2\nstack = { scale = {} }", ["`space.stack.scale`", "only passthrough"]),
        ("method = 'passthrough'\ngranularity = 2\nstack = { scale_modules = ['x'] }", ["scale_modules`", "`scale`"]),
        ("method = 'passthrough'\ngranularity = 2\nstack = { scale = { low = 2 } }", ["`space.stack.scale`", "below"]),
        (
            "method = 'passthrough'\ngranularity = 2\nstack = { scale = { low = -1e308, high = 1e308 } }",
            ["`space.stack.scale`", "too large a number"],
        ),
        (
            "method = 'passthrough'\ngranularity = 2\nstack = { scale = { init = 2 } }",
            ["scale.init`", "from 0.5 to 1.5"],
        ),
        ("method = 'passthrough'\ngranularity = 2\nstack = { scale = 1.0 }", ["`space.stack.scale`", "table"]),
        (
            "method = 'passthrough'\ngranularity = 2\nstack = {}\ngenes = { scale = 0.5 }",
            ["`space.genes`", "`space.stack.scale`"],
        ),
    ] {
        let message = refused(&run(space));
        for word in words {
            assert!(message.contains(word), "{space}: {message} lacks {word}");
        }
    }
    let identity = |space: &str| parse(&run(space)).unwrap().identity();
    let (two, three) = ("granularity = 2\nstack = {}", "granularity = 2\nstack = { passes = 3 }");
    let [before, after] = [two, three].map(|space| identity(&format!("method = 'passthrough'\n{space}")));
    let found = differences(&before["space"], &after["space"]);
    assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), ["stack.passes: 2 -> 3"]);
}

#[test]
fn racing_and_automatic_groups_are_read() {
    assert_eq!(parse(RUN).unwrap().effective_racing(), None);
    let samples = parse(&changed("evaluations = 300", "samples = 9000")).unwrap();
    assert_eq!(samples.effective_racing(), Some(RacingConfig::default()));
    let set = parse(&changed("[evaluator]", "[racing]\nrungs = 2\nreduction = 3\n[evaluator]")).unwrap();
    assert_eq!(set.effective_racing(), Some(RacingConfig { rungs: Some(2), reduction: 3 }));
    for (wrong, word) in [("rungs = 0", "from 1 to 8"), ("reduction = 1", "from 2 to 16"), ("rung = 2", "rungs")] {
        let text = refused(&changed("[evaluator]", &format!("[racing]\n{wrong}\n[evaluator]")));
        assert!(text.contains(word), "{text}");
    }
    let auto = parse(&changed("layer_groups = 3", "layer_groups = \"auto\"")).unwrap();
    assert_eq!(auto.space.unwrap().layers, LayerGrouping::Auto);
    for wrong in ["\"atuo\"", "[3]", "2.5"] {
        let text = refused(&changed("layer_groups = 3", &format!("layer_groups = {wrong}")));
        assert!(text.contains("`space.layer_groups`: expected a whole number or \"auto\", found"), "{text}");
    }
}

/// Every key of a file that uses them all, misspelt, is named in the message.
#[test]
fn every_misspelt_key_is_named() {
    let words = |line: &str| {
        let starts = line
            .char_indices()
            .filter(|(index, c)| c.is_ascii_lowercase() && (*index == 0 || line[..*index].ends_with([' ', '{'])));
        let found = starts.filter_map(|(start, _)| {
            let length = line[start..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))?;
            line[start + length..].trim_start().starts_with('=').then_some((start, start + length))
        });
        found.collect::<Vec<_>>()
    };
    let mut section = String::new();
    let mut checked = 0;
    for (number, line) in RUN.lines().enumerate() {
        if line.starts_with('[') {
            section = line.to_owned();
            continue;
        }
        for (start, end) in words(line) {
            // The keys of a strategy are judged by the strategy.
            if section == "[strategy]" {
                continue;
            }
            let misspelt = format!("{}zq", &line[start..end]);
            let mut lines: Vec<String> = RUN.lines().map(str::to_owned).collect();
            lines[number].insert_str(end, "zq");
            let message = refused(&lines.join("\n"));
            assert!(message.contains(&misspelt), "{line}: {message}");
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked}");
}
