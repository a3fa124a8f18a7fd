//! `[space.stack]`: layer stacking.

use std::num::NonZeroUsize;

use super::values::check_range;
use super::{LayerGrouping, StackBlocks, StackConfig, StackScale};
use crate::document::{Field, FieldError, Fields};
use crate::merge::{self, MethodSpecification, SingleSource};

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
    let alone = methods.iter().find(|method| method.single_source == SingleSource::Only).map(|method| method.name);
    if let Some(name) = alone.filter(|_| methods.len() > 1) {
        return Err(field.error(format!(
            "with `stack`, {name} stands alone in `space.method`; other methods stack the model that they merge"
        )));
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
    let with_sources = with_sources.map(|field| read_sources(&field, methods, alone)).transpose()?;
    let blocks = match (alone, with_sources) {
        (Some(_), _) => StackBlocks::Sources,
        (None, Some(true)) => StackBlocks::MergedAndSources,
        (None, Some(false) | None) => StackBlocks::Merged,
    };
    let scale = read_scale(&mut fields, alone.is_none())?;
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

/// `alone`: the method that has nothing but sources to stack.
fn read_sources(
    field: &Field<'_>,
    methods: &[&'static MethodSpecification],
    alone: Option<&str>,
) -> Result<bool, FieldError> {
    let wanted = field.truth()?;
    if let Some(name) = alone.filter(|_| !wanted) {
        return Err(field.error(format!("{name} has nothing but the sources to stack")));
    }
    let cannot = methods.iter().find(|method| method.single_source == SingleSource::Changed);
    match cannot.filter(|_| wanted) {
        Some(method) => Err(field.error(format!(
            "{} cannot write the layers of a single source; {} can",
            method.name,
            names_of(SingleSource::Kept)
        ))),
        None => Ok(wanted),
    }
}

/// The methods that make this of one source.
fn names_of(made: SingleSource) -> String {
    let methods = merge::methods().iter().filter(|method| method.single_source == made);
    methods.map(|method| method.name).collect::<Vec<_>>().join(", ")
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
        return Err(field.error(format!(
            "only {} scales what it stacks; export the merged model, and stack it as one of the sources",
            names_of(SingleSource::Only)
        )));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read_toml(methods: &[&str], stack: &str) -> Result<StackConfig, String> {
        let methods: Vec<_> = methods.iter().filter_map(|name| merge::find_method(name)).collect();
        let node = crate::document::Node::from_toml(stack).map_err(|error| error.to_string())?;
        read(&node.root(), &methods, &LayerGrouping::Auto, false).map_err(|error| error.to_string())
    }

    #[test]
    fn methods_say_themselves_whether_sources_can_stand_beside_what_they_merge() {
        for method in merge::methods().iter().filter(|method| method.single_source == SingleSource::Kept) {
            let read = read_toml(&[method.name], "with_sources = true").unwrap();
            assert_eq!(read.blocks, StackBlocks::MergedAndSources, "{}", method.name);
        }
        let error = read_toml(&["ties", "sce"], "with_sources = true").unwrap_err();
        assert!(error.contains("sce cannot") && error.contains("linear, task_arithmetic, ties"), "{error}");
        assert_eq!(read_toml(&["ties", "sce"], "").unwrap().blocks, StackBlocks::Merged);
        assert_eq!(read_toml(&["passthrough"], "with_sources = true").unwrap().blocks, StackBlocks::Sources);
    }
}
