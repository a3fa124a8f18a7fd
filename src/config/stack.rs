//! `[space.stack]`: layer stacking.

use std::num::NonZeroUsize;

use super::values::check_range;
use super::{LayerGrouping, StackBlocks, StackConfig, StackScale};
use crate::document::{Field, FieldError, Fields};
use crate::merge::MethodSpecification;

/// The method that takes blocks as they are.
const PASSTHROUGH: &str = "passthrough";
/// Methods that give a single source back unchanged, with weight 1, density 1 and lambda 1.
const HOLD_SOURCES: [&str; 5] = ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"];
const DEFAULT_PASSES: NonZeroUsize = NonZeroUsize::new(2).unwrap();
const MOST_PASSES: usize = 16;
/// Default range of a block's factor, from the least to the greatest.
const FACTORS: (f64, f64) = (0.5, 1.5);
/// What writes to the residual stream in models of the Llama family.
const RESIDUAL_MODULES: [&str; 2] = ["o_proj", "down_proj"];

pub(super) fn read(
    field: &Field<'_>,
    methods: &[&'static MethodSpecification],
    layers: &LayerGrouping,
    interpolate: bool,
) -> Result<StackConfig, FieldError> {
    let mut fields = field.fields()?;
    let merged = !methods.iter().any(|method| method.name == PASSTHROUGH);
    if !merged && methods.len() > 1 {
        return Err(field.error(
            "with `stack`, passthrough stands alone in `space.method`; other methods stack the model that they merge",
        ));
    }
    if *layers == LayerGrouping::Groups(NonZeroUsize::MIN) {
        return Err(field.error("stacks blocks of layers: say how long they are with `space.granularity`, or how many there are with `space.layer_groups`"));
    }
    if interpolate {
        return Err(field.error("does not go together with `space.interpolate`: what is stacked are blocks"));
    }
    let passes = match fields.take("passes") {
        Some(field) => read_passes(&field)?,
        None => DEFAULT_PASSES,
    };
    let max_layers = fields.take("max_layers").map(|field| field.count()).transpose()?;
    let with_sources = fields.take("with_sources");
    let with_sources = with_sources.map(|field| read_sources(&field, methods, merged)).transpose()?;
    let blocks = match (merged, with_sources) {
        (false, _) => StackBlocks::Sources,
        (true, Some(true)) => StackBlocks::MergedAndSources,
        (true, Some(false) | None) => StackBlocks::Merged,
    };
    let scale = read_scale(&mut fields, merged)?;
    fields.finish()?;
    Ok(StackConfig { passes, max_layers, blocks, scale })
}

fn read_passes(field: &Field<'_>) -> Result<NonZeroUsize, FieldError> {
    let passes = field.count()?;
    if passes.get() > MOST_PASSES {
        return Err(field.error(format!("must be at most {MOST_PASSES}, not {passes}")));
    }
    Ok(passes)
}

fn read_sources(field: &Field<'_>, methods: &[&'static MethodSpecification], merged: bool) -> Result<bool, FieldError> {
    let wanted = field.truth()?;
    if !merged {
        return if wanted { Ok(true) } else { Err(field.error("passthrough has nothing but the sources to stack")) };
    }
    let cannot = methods.iter().find(|method| !HOLD_SOURCES.contains(&method.name));
    match cannot.filter(|_| wanted) {
        Some(method) => Err(field.error(format!(
            "{} cannot write the layers of a single source; {} can",
            method.name,
            HOLD_SOURCES.join(", ")
        ))),
        None => Ok(wanted),
    }
}

fn read_scale(fields: &mut Fields<'_>, merged: bool) -> Result<Option<StackScale>, FieldError> {
    let modules = fields.take("scale_modules");
    let Some(field) = fields.take("scale") else {
        return match modules {
            Some(field) => Err(field.error("says what `scale` is for, which is not given")),
            None => Ok(None),
        };
    };
    if merged {
        return Err(field.error(
            "only passthrough scales what it stacks; export the merged model, and stack it as one of the sources",
        ));
    }
    let mut own = field.fields()?;
    let (mut low, mut high) = FACTORS;
    for (key, bound) in [("low", &mut low), ("high", &mut high)] {
        if let Some(field) = own.take(key) {
            *bound = field.number()?;
        }
    }
    check_range(&field, low, high, "without `scale`, blocks stay as they are")?;
    let init = match own.take("init") {
        Some(field) => {
            let init = field.number()?;
            if !(low..=high).contains(&init) {
                return Err(field.error(format!("must be from {low} to {high}, not {init}")));
            }
            init
        }
        None => 1.0_f64.clamp(low, high),
    };
    own.finish()?;
    let modules = match modules {
        Some(field) => {
            let modules = field.words()?;
            if modules.is_empty() {
                return Err(field.error("at least one part of a tensor's name is needed"));
            }
            modules
        }
        None => RESIDUAL_MODULES.map(str::to_owned).to_vec(),
    };
    Ok(Some(StackScale { low, high, init, modules }))
}
