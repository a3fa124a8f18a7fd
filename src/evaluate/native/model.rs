//! The forward pass of a Llama-family decoder in float32: grouped-query attention, rotary embedding, SwiGLU, RMS norm
//! (Touvron et al. 2023, arXiv:2302.13971), written on candle's operations.
//!
//! Prompts of one batch have equal length, so no padding and no padding mask exist. A row's result does not depend on
//! the thread count: every operation here sums in an order that shapes alone fix.

use std::path::Path;

use candle_core::{D, Device, Result as TensorResult, Tensor};
use candle_nn::ops::{rms_norm, softmax_last_dim};
use candle_nn::rotary_emb::rope;

use super::architecture::Architecture;
use super::fault;
use super::weights::Weights;
use crate::evaluate::Fault;

/// `x W + b`, the weight stored input-major.
struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Stacks the projections `names` (each `outputs` x `inputs`) into one, so that one product serves them all.
    fn load(
        weights: &mut Weights,
        prefix: &str,
        names: &[(&str, usize)],
        inputs: usize,
        with_bias: bool,
    ) -> Result<Self, Fault> {
        let mut stacked = Vec::with_capacity(names.len());
        let mut biases = Vec::with_capacity(names.len());
        for (name, outputs) in names {
            stacked.push(weights.tensor(&format!("{prefix}.{name}.weight"), &[*outputs, inputs])?);
            if with_bias {
                biases.push(weights.tensor(&format!("{prefix}.{name}.bias"), &[*outputs])?);
            }
        }
        let build = || -> TensorResult<Self> {
            let weight = Tensor::cat(&stacked, 0)?.t()?.contiguous()?;
            let bias = if with_bias { Some(Tensor::cat(&biases, 0)?) } else { None };
            Ok(Self { weight, bias })
        };
        build().map_err(fault::tensor)
    }

    /// `x`: `[rows, inputs]`.
    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let y = x.matmul(&self.weight)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

struct Layer {
    input_norm: Tensor,
    qkv: Linear,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    output: Linear,
    mlp_norm: Tensor,
    gate_up: Linear,
    down: Linear,
}

impl Layer {
    fn load(weights: &mut Weights, architecture: &Architecture, index: usize) -> Result<Self, Fault> {
        let a = architecture;
        let prefix = format!("model.layers.{index}");
        let (attention, mlp) = (format!("{prefix}.self_attn"), format!("{prefix}.mlp"));
        let (query, key_value) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let mut head_norm = |name: &str| match a.qk_norm {
            true => weights.tensor(&format!("{attention}.{name}.weight"), &[a.head_dim]).map(Some),
            false => Ok(None),
        };
        let (q_norm, k_norm) = (head_norm("q_norm")?, head_norm("k_norm")?);
        let projections = [("q_proj", query), ("k_proj", key_value), ("v_proj", key_value)];
        Ok(Self {
            input_norm: weights.tensor(&format!("{prefix}.input_layernorm.weight"), &[a.hidden])?,
            qkv: Linear::load(weights, &attention, &projections, a.hidden, a.qkv_bias)?,
            q_norm,
            k_norm,
            output: Linear::load(weights, &attention, &[("o_proj", a.hidden)], query, a.output_bias)?,
            mlp_norm: weights.tensor(&format!("{prefix}.post_attention_layernorm.weight"), &[a.hidden])?,
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
    norm: Tensor,
    head: Linear,
}

impl Model {
    /// Loads the checkpoint in `folder`.
    ///
    /// # Errors
    /// See [`Architecture::read`] and [`Weights`].
    pub(super) fn load(folder: &Path) -> Result<Self, Fault> {
        let architecture = Architecture::read(folder)?;
        let mut weights = Weights::open(folder)?;
        let (vocabulary, hidden) = (architecture.vocabulary, architecture.hidden);
        let embedding = weights.tensor("model.embed_tokens.weight", &[vocabulary, hidden])?;
        let head = if architecture.tied_embeddings {
            embedding.clone()
        } else {
            weights.tensor("lm_head.weight", &[vocabulary, hidden])?
        };
        let head = Linear { weight: head.t().map_err(fault::tensor)?, bias: None };
        let layers = (0..architecture.layers)
            .map(|index| Layer::load(&mut weights, &architecture, index))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = weights.tensor("model.norm.weight", &[hidden])?;
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
            let normalized = rms_norm(&hidden.contiguous()?, &self.norm, self.architecture.norm_epsilon)?;
            self.head.forward(&normalized)?.flatten_all()?.to_vec1()
        };
        let logits = compute().map_err(fault::tensor)?;
        match logits.iter().find(|logit| !logit.is_finite()) {
            Some(logit) => Err(fault::nonfinite(format!("a next-token logit is {logit}"))),
            None => Ok(logits),
        }
    }

    fn hidden_states(&self, tokens: &[u32], batch: usize, cache: &mut Cache) -> TensorResult<Tensor> {
        let length = tokens.len() / batch;
        let (cos, sin) = self.rotations(cache.positions, length)?;
        let mask = self.mask(cache.positions, length)?;
        let mut x = self.embedding.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?;
        for (layer, seen) in self.layers.iter().zip(&mut cache.layers) {
            let normalized = rms_norm(&x, &layer.input_norm, self.architecture.norm_epsilon)?;
            x = (x + self.attention(layer, &normalized, (batch, length), (&cos, &sin), mask.as_ref(), seen)?)?;
            let normalized = rms_norm(&x, &layer.mlp_norm, self.architecture.norm_epsilon)?;
            x = (x + self.mlp(layer, &normalized)?)?;
        }
        cache.positions += length;
        x.reshape((batch, length, self.architecture.hidden))
    }

    /// `x`: `[batch * length, hidden]`.
    fn attention(
        &self,
        layer: &Layer,
        x: &Tensor,
        (batch, length): (usize, usize),
        (cos, sin): (&Tensor, &Tensor),
        mask: Option<&Tensor>,
        seen: &mut Option<(Tensor, Tensor)>,
    ) -> TensorResult<Tensor> {
        let a = &self.architecture;
        let (query, key_value) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let qkv = layer.qkv.forward(x)?;
        let split = |offset: usize, heads: usize, norm: Option<&Tensor>| -> TensorResult<Tensor> {
            let part = qkv.narrow(1, offset, heads * a.head_dim)?;
            let part = match norm {
                Some(norm) => rms_norm(&part.reshape(((), a.head_dim))?.contiguous()?, norm, a.norm_epsilon)?,
                None => part,
            };
            part.reshape((batch, length, heads, a.head_dim))?.transpose(1, 2)?.contiguous()
        };
        let q = rope(&split(0, a.heads, layer.q_norm.as_ref())?, cos, sin)?;
        let mut k = rope(&split(query, a.kv_heads, layer.k_norm.as_ref())?, cos, sin)?;
        let mut v = split(query + key_value, a.kv_heads, None)?;
        if let Some((earlier_k, earlier_v)) = seen.take() {
            k = Tensor::cat(&[&earlier_k, &k], 2)?;
            v = Tensor::cat(&[&earlier_v, &v], 2)?;
        }
        // The query heads that share a key-value head are stacked as rows: nothing is repeated.
        let shared = a.heads / a.kv_heads * length;
        let q = (q.reshape((batch, a.kv_heads, shared, a.head_dim))? * (a.head_dim as f64).powf(-0.5))?;
        let mut scores = q.matmul(&k.t()?)?;
        if let Some(mask) = mask {
            scores = scores.reshape((batch, a.heads, length, ()))?.broadcast_add(mask)?.reshape(scores.shape())?;
        }
        let mixed = softmax_last_dim(&scores)?.matmul(&v)?;
        *seen = Some((k, v));
        let mixed = mixed.reshape((batch, a.heads, length, a.head_dim))?.transpose(1, 2)?;
        layer.output.forward(&mixed.reshape((batch * length, query))?)
    }

    fn mlp(&self, layer: &Layer, x: &Tensor) -> TensorResult<Tensor> {
        let both = layer.gate_up.forward(x)?;
        let width = self.architecture.intermediate;
        let (gate, up) = (both.narrow(D::Minus1, 0, width)?, both.narrow(D::Minus1, width, width)?);
        layer.down.forward(&(gate.silu()? * up)?)
    }

    /// Cosines and sines `[length, head_dim / 2]` for positions from `start`.
    fn rotations(&self, start: usize, length: usize) -> TensorResult<(Tensor, Tensor)> {
        let frequencies = &self.architecture.inverse_frequencies;
        let angles: Vec<f32> = (start..start + length)
            .flat_map(|position| frequencies.iter().map(move |frequency| position as f32 * frequency))
            .collect();
        let shape = (length, frequencies.len());
        let of = |function: fn(f32) -> f32| {
            Tensor::from_vec(angles.iter().copied().map(function).collect::<Vec<_>>(), shape, &Device::Cpu)
        };
        Ok((of(f32::cos)?, of(f32::sin)?))
    }

    /// What is added to the scores `[length, start + length]`: nothing where a position may look, minus infinity
    /// elsewhere. `None` where every position may be looked at.
    fn mask(&self, start: usize, length: usize) -> TensorResult<Option<Tensor>> {
        let end = start + length;
        let window = self.architecture.sliding_window.unwrap_or(usize::MAX);
        if length == 1 && end <= window {
            return Ok(None);
        }
        let allowed = |from: usize, to: usize| to <= from && from - to < window;
        let values: Vec<f32> = (start..end)
            .flat_map(|from| (0..end).map(move |to| if allowed(from, to) { 0.0 } else { f32::NEG_INFINITY }))
            .collect();
        Tensor::from_vec(values, (length, end), &Device::Cpu).map(Some)
    }
}
