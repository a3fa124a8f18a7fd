//! The bits of merges, which are the same on every machine: digests of the golden recipes' outputs, as they were
//! recorded on one. Other ones mean another definition, rounding or order of sums: then `FORMAT` in
//! `src/merge/statistics_file.rs` is raised too.

#[path = "support/golden.rs"]
#[allow(dead_code, reason = "shared with the tests of golden merges")]
mod golden;

use std::fmt::Write as _;
use std::path::Path;

use evomerge::checkpoint::{CheckpointWriter, Dtype, OutputFile, OutputTensor, WriteMode};
use evomerge::merge::{Isa, MergeOptions, Merger, MergerOptions, find_method};
use evomerge::recipe::MaskKind;
use half::bf16;
use sha2::{Digest as _, Sha256};

/// Writes the family once more, with elements of another type.
fn write_family(models: &Path, dtype: Dtype) {
    for name in golden::MODELS {
        let source = golden::folder().join("models").join(name);
        let tensors = golden::read(&source.join("model.safetensors"));
        let output = tensors.iter().map(|(name, (_, shape, _))| OutputTensor {
            name: name.clone(),
            dtype: dtype.stored(),
            shape: shape.clone(),
        });
        let file = OutputFile { name: "model.safetensors".into(), tensors: output.collect() };
        let writer = CheckpointWriter::create(&models.join(name), &[file], WriteMode::default()).unwrap();
        for (name, (_, _, values)) in &tensors {
            let bytes: Vec<u8> = match dtype {
                Dtype::Bfloat16 => values.iter().flat_map(|value| bf16::from_f64(*value).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            };
            writer.write_at(name, 0, &bytes).unwrap();
        }
        writer.put_file("config.json", &std::fs::read(source.join("config.json")).unwrap()).unwrap();
        writer.finish().unwrap();
    }
}

/// The sha256 of the weights of each case, and of each kind of masks where these are drawn.
fn digests(merger: &Merger, stored: &str, written: Dtype, lines: &mut String) {
    for case in golden::cases() {
        let mut recipe = golden::recipe(&case);
        (recipe.dtype, recipe.out_dtype) = (Some(written), None);
        let sampled = find_method(&recipe.merge_method).unwrap().samples_masks;
        for (masks, kind) in [("mergekit", MaskKind::Mergekit), ("native", MaskKind::Native)] {
            if kind == MaskKind::Native && !sampled {
                continue;
            }
            recipe.masks.kind = kind;
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().join("out");
            merger.materialize(&recipe, &out, &MergeOptions::default()).unwrap();
            let digest = Sha256::digest(std::fs::read(out.join("model.safetensors")).unwrap());
            let hex: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
            let masks = if sampled { masks } else { "-" };
            let _ = writeln!(lines, "{case} {stored} {} {masks} {hex}", written.stored());
        }
    }
}

#[test]
fn every_machine_and_instruction_set_gives_the_recorded_bits() {
    let recorded = std::fs::read_to_string(golden::folder().join("digests.txt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [narrow, wide] = [("narrow", Dtype::Bfloat16), ("wide", Dtype::Float64)].map(|(name, dtype)| {
        write_family(&folder.path().join(name), dtype);
        folder.path().join(name)
    });
    for isa in Isa::available() {
        let merger =
            |models: &Path| golden::merger_with(models, MergerOptions { isa: Some(isa), ..MergerOptions::default() });
        let mut found = String::new();
        let models = golden::folder().join("models");
        for (models, stored, written) in [
            (models.as_path(), "F32", Dtype::Float32),
            (&models, "F32", Dtype::Bfloat16),
            (&narrow, "BF16", Dtype::Bfloat16),
            (&wide, "F64", Dtype::Float64),
        ] {
            digests(&merger(models), stored, written, &mut found);
        }
        let other: Vec<&str> = found.lines().filter(|line| !recorded.lines().any(|known| known == *line)).collect();
        assert!(found == recorded, "{}: {} other lines\n{}", isa.name(), other.len(), other.join("\n"));
    }
}
