//! The two networks of the digits zoos, as `evals/digits/digits_models.py` has them.

use std::collections::HashMap;
use std::error::Error;

use candle_core::{D, DType, Tensor};

const LAYERS: usize = 6;
const EPSILON: f64 = 1e-5;
/// Images that the convolutions take at once: as many as stay in the cache.
const BATCH: usize = 100;

type Weights = HashMap<String, Tensor>;
type Failure = Box<dyn Error>;

/// The digit that the network reads in each image; `pixels` is [n, height x width], from 0 to 1.
pub fn read(weights: &Weights, pixels: &Tensor) -> Result<Vec<u32>, Failure> {
    let logits = if weights.contains_key("conv1.weight") {
        let parts = (0..pixels.dim(0)?).step_by(BATCH);
        let logits = parts.map(|start| {
            let length = BATCH.min(pixels.dim(0)? - start);
            convolutional(weights, &pixels.narrow(0, start, length)?)
        });
        Tensor::cat(&logits.collect::<Result<Vec<_>, Failure>>()?, 0)?
    } else {
        residual(weights, pixels)?
    };
    Ok(logits.argmax(D::Minus1)?.to_dtype(DType::U32)?.to_vec1()?)
}

fn weight<'a>(weights: &'a Weights, name: &str) -> Result<&'a Tensor, Failure> {
    weights.get(name).ok_or_else(|| format!("no tensor {name}").into())
}

fn product(weights: &Weights, x: &Tensor, name: &str) -> Result<Tensor, Failure> {
    Ok(x.matmul(&weight(weights, name)?.t()?)?)
}

fn normed(x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + EPSILON)?.sqrt()?;
    x.broadcast_div(&scale)?.broadcast_mul(weight)
}

/// Six residual gated layers.
fn residual(weights: &Weights, pixels: &Tensor) -> Result<Tensor, Failure> {
    let mut hidden =
        product(weights, pixels, "model.embed.weight")?.broadcast_add(weight(weights, "model.embed.bias")?)?;
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let x = normed(&hidden, weight(weights, &name("post_attention_layernorm"))?)?;
        let gate = product(weights, &x, &name("mlp.gate_proj"))?.relu()?;
        let inner = (gate * product(weights, &x, &name("mlp.up_proj"))?)?;
        hidden = (hidden + product(weights, &inner, &name("mlp.down_proj"))?)?;
    }
    product(weights, &normed(&hidden, weight(weights, "model.norm.weight")?)?, "lm_head.weight")
}

/// Three convolutions and two dense layers, over images of 28 x 28.
fn convolutional(weights: &Weights, pixels: &Tensor) -> Result<Tensor, Failure> {
    let mut x = pixels.reshape(((), 1, 28, 28))?;
    for (name, pooled) in [("conv1", true), ("conv2", true), ("conv3", false)] {
        let bias = weight(weights, &format!("{name}.bias"))?.reshape((1, (), 1, 1))?;
        x = convolved(&x, weight(weights, &format!("{name}.weight"))?)?.broadcast_add(&bias)?.relu()?;
        x = if pooled { x.max_pool2d(2)? } else { x };
    }
    let hidden =
        product(weights, &x.flatten_from(1)?, "fc1.weight")?.broadcast_add(weight(weights, "fc1.bias")?)?.relu()?;
    Ok(product(weights, &hidden, "head.weight")?.broadcast_add(weight(weights, "head.bias")?)?)
}

/// A convolution by 3 x 3 with zeros around, as one product of matrices an image: three times as fast as candle's own.
fn convolved(x: &Tensor, kernel: &Tensor) -> Result<Tensor, Failure> {
    let (n, channels, height, width) = x.dims4()?;
    let padded = x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
    let shifts = (0..9).map(|shift| padded.narrow(2, shift / 3, height)?.narrow(3, shift % 3, width));
    let columns = Tensor::cat(&shifts.collect::<candle_core::Result<Vec<_>>>()?, 1)?.reshape((
        n,
        9 * channels,
        height * width,
    ))?;
    let kernel = kernel.permute((0, 2, 3, 1))?.reshape(((), 9 * channels))?;
    let out = kernel.dim(0)?;
    Ok(kernel.broadcast_left(n)?.contiguous()?.matmul(&columns)?.reshape((n, out, height, width))?)
}
