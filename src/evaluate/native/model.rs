//! The forward pass of a Llama-family decoder in float32: grouped-query attention, rotary embedding, SwiGLU, RMS norm
//! (Touvron et al. 2023, arXiv:2302.13971), written on candle's operations.
//!
//! Prompts of one batch have equal length, so no padding and no padding mask exist. A row's result does not depend on
//! the thread count: every operation here sums in an order that shapes alone fix.

use std::path::Path;

use candle_core::{Device, Result as TensorResult, Tensor};

use super::architecture::Architecture;
use super::fault;
use super::kernels::{
    Causal, Heads, Rotation, add, add_bias, causal_softmax, map, merge_heads, rms_norm, split_heads, swiglu, zip,
};
use super::weights::Weights;
use crate::evaluate::Fault;

/// `x W + b`, the weight stored input-major.
struct Linear {
    weight: Tensor,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// Stacks the projections `names` (each `outputs` x `inputs`) into one, so that one product serves them all.
    fn load(
        weights: &Weights,
        prefix: &str,
        names: &[(&str, usize)],
        inputs: usize,
        with_bias: bool,
    ) -> Result<Self, Fault> {
        let mut stacked = Vec::with_capacity(names.len());
        let mut bias = Vec::new();
        for (name, outputs) in names {
            stacked.push(weights.tensor(&format!("{prefix}.{name}.weight"), &[*outputs, inputs])?);
            if with_bias {
                bias.extend(weights.vector(&format!("{prefix}.{name}.bias"), *outputs)?);
            }
        }
        let weight = Tensor::cat(&stacked, 0).and_then(|stacked| stacked.t()?.contiguous()).map_err(fault::tensor)?;
        Ok(Self { weight, bias: with_bias.then_some(bias) })
    }

    /// `x`: `[rows, inputs]`.
    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let y = x.matmul(&self.weight)?;
        match &self.bias {
            Some(bias) => map(&y, y.shape(), |y, output| add_bias(y, bias, output)),
            None => Ok(y),
        }
    }
}

struct Layer {
    input_norm: Vec<f32>,
    qkv: Linear,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    output: Linear,
    mlp_norm: Vec<f32>,
    gate_up: Linear,
    down: Linear,
}

impl Layer {
    fn load(weights: &Weights, architecture: &Architecture, index: usize) -> Result<Self, Fault> {
        let a = architecture;
        let prefix = format!("model.layers.{index}");
        let (attention, mlp) = (format!("{prefix}.self_attn"), format!("{prefix}.mlp"));
        let (query, key_value) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let head_norm = |name: &str| match a.qk_norm {
            true => weights.vector(&format!("{attention}.{name}.weight"), a.head_dim).map(Some),
            false => Ok(None),
        };
        let (q_norm, k_norm) = (head_norm("q_norm")?, head_norm("k_norm")?);
        let projections = [("q_proj", query), ("k_proj", key_value), ("v_proj", key_value)];
        Ok(Self {
            input_norm: weights.vector(&format!("{prefix}.input_layernorm.weight"), a.hidden)?,
            qkv: Linear::load(weights, &attention, &projections, a.hidden, a.qkv_bias)?,
            q_norm,
            k_norm,
            output: Linear::load(weights, &attention, &[("o_proj", a.hidden)], query, a.output_bias)?,
            mlp_norm: weights.vector(&format!("{prefix}.post_attention_layernorm.weight"), a.hidden)?,
            gate_up: Linear::load(
                weights,
                &mlp,
                &[("gate_proj", a.intermediate), ("up_proj", a.intermediate)],
                a.hidden,
                a.mlp_bias,
            )?,
            down: Linear::load(weights, &mlp, &[("down_proj", a.hidden)], a.intermediate, a.mlp_bias)?,
        })
    }
}

/// Keys and values of the positions seen so far, layer by layer: `[batch, kv_heads, positions, head_dim]`.
#[derive(Clone)]
pub(super) struct Cache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    positions: usize,
}

impl Cache {
    /// Keeps the given rows of the batch, in the given order.
    pub(super) fn keep_rows(&mut self, rows: &[u32]) -> Result<(), Fault> {
        let keep = || -> TensorResult<Vec<Option<(Tensor, Tensor)>>> {
            let rows = Tensor::new(rows, &Device::Cpu)?;
            let select = |pair: &Option<(Tensor, Tensor)>| {
                pair.as_ref().map(|(k, v)| Ok((k.index_select(&rows, 0)?, v.index_select(&rows, 0)?))).transpose()
            };
            self.layers.iter().map(select).collect()
        };
        self.layers = keep().map_err(fault::tensor)?;
        Ok(())
    }
}

/// A decoder with its weights.
pub(super) struct Model {
    pub(super) architecture: Architecture,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Linear,
}

impl Model {
    /// Loads the checkpoint in `folder`.
    ///
    /// # Errors
    /// See [`Architecture::read`] and [`Weights`].
    pub(super) fn load(folder: &Path) -> Result<Self, Fault> {
        let architecture = Architecture::read(folder)?;
        let weights = Weights::open(folder)?;
        let (vocabulary, hidden) = (architecture.vocabulary, architecture.hidden);
        let embedding = weights.tensor("model.embed_tokens.weight", &[vocabulary, hidden])?;
        let head = if architecture.tied_embeddings {
            embedding.clone()
        } else {
            weights.tensor("lm_head.weight", &[vocabulary, hidden])?
        };
        let head = Linear { weight: head.t().map_err(fault::tensor)?, bias: None };
        let layers = (0..architecture.layers)
            .map(|index| Layer::load(&weights, &architecture, index))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = weights.vector("model.norm.weight", hidden)?;
        Ok(Self { architecture, embedding, layers, norm, head })
    }

    /// A cache that has seen nothing.
    pub(super) fn cache(&self) -> Cache {
        Cache { layers: vec![None; self.layers.len()], positions: 0 }
    }

    /// Feeds `batch` rows of equal length (`tokens`, row after row; each below the vocabulary's size) and returns the
    /// hidden states `[batch, length, hidden]` before the final norm.
    pub(super) fn forward(&self, tokens: &[u32], batch: usize, cache: &mut Cache) -> Result<Tensor, Fault> {
        self.hidden_states(tokens, batch, cache).map_err(fault::tensor)
    }

    /// Next-token logits `[rows, vocabulary]` of hidden states `[rows, hidden]`.
    ///
    /// # Errors
    /// A candidate fault when a logit is not finite.
    pub(super) fn logits(&self, hidden: &Tensor) -> Result<Vec<f32>, Fault> {
        let compute = || -> TensorResult<Vec<f32>> {
            self.head.forward(&self.normalize(hidden, &self.norm)?)?.flatten_all()?.to_vec1()
        };
        let logits = compute().map_err(fault::tensor)?;
        match logits.iter().find(|logit| !logit.is_finite()) {
            Some(logit) => Err(fault::nonfinite(format!("a next-token logit is {logit}"))),
            None => Ok(logits),
        }
    }

    fn normalize(&self, x: &Tensor, weight: &[f32]) -> TensorResult<Tensor> {
        map(x, x.shape(), |x, output| rms_norm(x, weight, self.architecture.norm_epsilon, output))
    }

    fn hidden_states(&self, tokens: &[u32], batch: usize, cache: &mut Cache) -> TensorResult<Tensor> {
        let length = tokens.len() / batch;
        let window = self.architecture.sliding_window.unwrap_or(usize::MAX);
        let causal = Causal { start: cache.positions, length, window };
        let rotation = self.rotation(cache.positions, length);
        let mut x = self.embedding.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?;
        for (layer, seen) in self.layers.iter().zip(&mut cache.layers) {
            let normalized = self.normalize(&x, &layer.input_norm)?;
            x = zip(&x, &self.attention(layer, &normalized, batch, causal, &rotation, seen)?, add)?;
            let normalized = self.normalize(&x, &layer.mlp_norm)?;
            x = zip(&x, &self.mlp(layer, &normalized)?, add)?;
        }
        cache.positions += length;
        x.reshape((batch, length, self.architecture.hidden))
    }

    /// `x`: `[batch * length, hidden]`.
    fn attention(
        &self,
        layer: &Layer,
        x: &Tensor,
        batch: usize,
        causal: Causal,
        rotation: &Rotation,
        seen: &mut Option<(Tensor, Tensor)>,
    ) -> TensorResult<Tensor> {
        let a = &self.architecture;
        let (length, head_dim) = (causal.length, a.head_dim);
        let row_width = (a.heads + 2 * a.kv_heads) * head_dim;
        let qkv = layer.qkv.forward(x)?;
        let split = |first: usize, heads: usize, norm: Option<&Vec<f32>>, rotation: Option<&Rotation>| {
            let at = Heads { length, row_width, offset: first * head_dim, heads, head_dim };
            let norm = norm.map(|weight| (&weight[..], a.norm_epsilon));
            map(&qkv, (batch, heads, length, head_dim), |x, output| split_heads(x, at, norm, rotation, output))
        };
        let q = split(0, a.heads, layer.q_norm.as_ref(), Some(rotation))?;
        let mut k = split(a.heads, a.kv_heads, layer.k_norm.as_ref(), Some(rotation))?;
        let mut v = split(a.heads + a.kv_heads, a.kv_heads, None, None)?;
        if let Some((earlier_k, earlier_v)) = seen.take() {
            k = Tensor::cat(&[&earlier_k, &k], 2)?;
            v = Tensor::cat(&[&earlier_v, &v], 2)?;
        }
        // The query heads that share a key-value head are stacked as rows: nothing is repeated.
        let stacked = a.heads / a.kv_heads * length;
        let scores = q.reshape((batch, a.kv_heads, stacked, head_dim))?.matmul(&k.t()?)?;
        let scale = (head_dim as f32).sqrt().recip();
        let shares = map(&scores, scores.shape(), |scores, output| causal_softmax(scores, causal, scale, output))?;
        let mixed = shares.matmul(&v)?;
        *seen = Some((k, v));
        let merged = map(&mixed, (batch * length, a.heads * head_dim), |x, output| {
            merge_heads(x, length, a.heads, head_dim, output);
        })?;
        layer.output.forward(&merged)
    }

    fn mlp(&self, layer: &Layer, x: &Tensor) -> TensorResult<Tensor> {
        let both = layer.gate_up.forward(x)?;
        let width = self.architecture.intermediate;
        let gated = map(&both, (both.dim(0)?, width), |both, output| swiglu(both, width, output))?;
        layer.down.forward(&gated)
    }

    /// For `length` positions from `start`.
    fn rotation(&self, start: usize, length: usize) -> Rotation {
        let frequencies = &self.architecture.inverse_frequencies;
        let angles = (start..start + length)
            .flat_map(|position| frequencies.iter().map(move |frequency| position as f32 * frequency));
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        Rotation { cos, sin }
    }
}
