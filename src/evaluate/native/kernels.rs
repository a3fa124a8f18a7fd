//! The arithmetic of a decoder between its matrix products, as plain loops over float32.
//!
//! The tensor library spreads its own element-wise operations over a global pool of spinning threads, behind a lock;
//! these stay on the thread that calls them, fuse what belongs together, and sum in an order that shapes alone fix.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result as TensorResult, Shape, Tensor, bail};

/// A tensor of `shape` that `kernel` fills (it is given zeros) from the elements of `x`.
pub(super) fn map(x: &Tensor, shape: impl Into<Shape>, kernel: impl Fn(&[f32], &mut [f32])) -> TensorResult<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Kernel { shape: shape.into(), kernel })
}

/// A tensor of `x`'s shape that `kernel` fills from the elements of `x` and `y`.
pub(super) fn zip(x: &Tensor, y: &Tensor, kernel: impl Fn(&[f32], &[f32], &mut [f32])) -> TensorResult<Tensor> {
    x.contiguous()?.apply_op2_no_bwd(&y.contiguous()?, &Kernel { shape: x.shape().clone(), kernel })
}

struct Kernel<F> {
    shape: Shape,
    kernel: F,
}

impl<F> Kernel<F> {
    fn fill(&self, kernel: impl FnOnce(&mut [f32])) -> (CpuStorage, Shape) {
        let mut output = vec![0.0; self.shape.elem_count()];
        kernel(&mut output);
        (CpuStorage::F32(output), self.shape.clone())
    }
}

fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> TensorResult<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((begin, end)) => Ok(&storage.as_slice::<f32>()?[begin..end]),
        None => bail!("a kernel needs contiguous elements"),
    }
}

impl<F: Fn(&[f32], &mut [f32])> CustomOp1 for Kernel<F> {
    fn name(&self) -> &'static str {
        "map"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> TensorResult<(CpuStorage, Shape)> {
        let x = elements(storage, layout)?;
        Ok(self.fill(|output| (self.kernel)(x, output)))
    }
}

impl<F: Fn(&[f32], &[f32], &mut [f32])> CustomOp2 for Kernel<F> {
    fn name(&self) -> &'static str {
        "zip"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
        other_storage: &CpuStorage,
        other_layout: &Layout,
    ) -> TensorResult<(CpuStorage, Shape)> {
        let (x, y) = (elements(storage, layout)?, elements(other_storage, other_layout)?);
        Ok(self.fill(|output| (self.kernel)(x, y, output)))
    }
}

/// `x + y`.
pub(super) fn add(x: &[f32], y: &[f32], output: &mut [f32]) {
    for ((sum, x), y) in output.iter_mut().zip(x).zip(y) {
        *sum = x + y;
    }
}

/// Adds `bias` to every row.
pub(super) fn add_bias(x: &[f32], bias: &[f32], output: &mut [f32]) {
    for (row, output) in x.chunks_exact(bias.len()).zip(output.chunks_exact_mut(bias.len())) {
        add(row, bias, output);
    }
}

/// Every row divided by its root mean square, times `weight` (Zhang and Sennrich 2019, arXiv:1910.07467).
pub(super) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
    let width = weight.len();
    for (row, output) in x.chunks_exact(width).zip(output.chunks_exact_mut(width)) {
        let scale = 1.0 / (sum_of_squares(row) / width as f32 + epsilon).sqrt();
        for ((output, x), weight) in output.iter_mut().zip(row).zip(weight) {
            *output = x * scale * weight;
        }
    }
}

/// In eight lanes, added up in pairs.
fn sum_of_squares(row: &[f32]) -> f32 {
    let (eights, rest) = row.as_chunks::<8>();
    let mut lanes = [0.0_f32; 8];
    for eight in eights {
        for (lane, x) in lanes.iter_mut().zip(eight) {
            *lane += x * x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x * x;
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// `silu(gate) * up`, each row of `gate_up` holding `width` of either.
pub(super) fn swiglu(gate_up: &[f32], width: usize, output: &mut [f32]) {
    for (row, output) in gate_up.chunks_exact(2 * width).zip(output.chunks_exact_mut(width)) {
        let (gate, up) = row.split_at(width);
        for ((output, gate), up) in output.iter_mut().zip(gate).zip(up) {
            *output = gate / (1.0 + (-gate).exp()) * up;
        }
    }
}

/// Where some heads lie in rows that hold the queries, keys and values of all heads.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    /// Rows of one sequence.
    pub(super) length: usize,
    pub(super) row_width: usize,
    /// Where the first of these heads begins in a row.
    pub(super) offset: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
}

/// Cosines and sines by position, half a head's dimensions each.
pub(super) struct Rotation {
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
}

/// Copies heads out of `[batch * length, row_width]` to `[batch, heads, length, head_dim]`, on the way normalized
/// (`norm`: weight and epsilon) and rotated (Su et al. 2021, arXiv:2104.09864; halves, not pairs, as Llama has it).
pub(super) fn split_heads(
    x: &[f32],
    at: Heads,
    norm: Option<(&[f32], f32)>,
    rotation: Option<&Rotation>,
    output: &mut [f32],
) {
    let dim = at.head_dim;
    let mut normalized = vec![0.0; dim];
    for (sequence, output) in
        x.chunks_exact(at.length * at.row_width).zip(output.chunks_exact_mut(at.heads * at.length * dim))
    {
        for (position, row) in sequence.chunks_exact(at.row_width).enumerate() {
            for head in 0..at.heads {
                let begin = at.offset + head * dim;
                let mut from = &row[begin..begin + dim];
                if let Some((weight, epsilon)) = norm {
                    rms_norm(from, weight, epsilon, &mut normalized);
                    from = &normalized;
                }
                let to = &mut output[(head * at.length + position) * dim..][..dim];
                match rotation {
                    Some(rotation) => rotate(from, rotation, position, to),
                    None => to.copy_from_slice(from),
                }
            }
        }
    }
}

fn rotate(from: &[f32], rotation: &Rotation, position: usize, to: &mut [f32]) {
    let half = from.len() / 2;
    let angles = position * half..(position + 1) * half;
    let (low, high) = from.split_at(half);
    let (to_low, to_high) = to.split_at_mut(half);
    let angles = rotation.cos[angles.clone()].iter().zip(&rotation.sin[angles]);
    for ((((low, high), (cos, sin)), to_low), to_high) in low.iter().zip(high).zip(angles).zip(to_low).zip(to_high) {
        *to_low = low * cos - high * sin;
        *to_high = high * cos + low * sin;
    }
}

/// `[batch, heads, length, head_dim]` to `[batch * length, heads * head_dim]`.
pub(super) fn merge_heads(x: &[f32], length: usize, heads: usize, head_dim: usize, output: &mut [f32]) {
    let size = length * heads * head_dim;
    for (x, output) in x.chunks_exact(size).zip(output.chunks_exact_mut(size)) {
        for (at, from) in x.chunks_exact(head_dim).enumerate() {
            let (head, position) = (at / length, at % length);
            output[(position * heads + head) * head_dim..][..head_dim].copy_from_slice(from);
        }
    }
}

/// What a query may look at.
#[derive(Clone, Copy)]
pub(super) struct Causal {
    /// Positions before the first query.
    pub(super) start: usize,
    /// Queries; the rows of the scores go through them again and again.
    pub(super) length: usize,
    /// Positions that a query sees at most, its own included.
    pub(super) window: usize,
}

/// Softmax of `scale * scores` (rows of `start + length`) over the positions that each row's query may look at; zero
/// for the others.
pub(super) fn causal_softmax(scores: &[f32], causal: Causal, scale: f32, output: &mut [f32]) {
    let width = causal.start + causal.length;
    for (at, (row, output)) in scores.chunks_exact(width).zip(output.chunks_exact_mut(width)).enumerate() {
        let end = causal.start + at % causal.length + 1;
        let seen = end.saturating_sub(causal.window)..end;
        let (row, output) = (&row[seen.clone()], &mut output[seen]);
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for (output, score) in output.iter_mut().zip(row) {
            *output = ((score - largest) * scale).exp();
            sum += *output;
        }
        let share = 1.0 / sum;
        for output in output.iter_mut() {
            *output *= share;
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn near(ours: &[f32], expected: &[f32]) {
        assert_eq!(ours.len(), expected.len());
        for (a, b) in ours.iter().zip(expected) {
            assert!((a - b).abs() < 1e-6, "{ours:?} is not {expected:?}");
        }
    }

    #[test]
    fn norm_by_hand() {
        let mut output = [0.0; 4];
        rms_norm(&[3.0, 4.0, 0.0, 2.0], &[1.0, 2.0], 0.0, &mut output);
        let (first, second) = (12.5_f32.sqrt(), 2.0_f32.sqrt());
        near(&output, &[3.0 / first, 8.0 / first, 0.0, 4.0 / second]);
        assert!((sum_of_squares(&[1.0; 19]) - 19.0).abs() < 1e-6);
    }

    #[test]
    fn gate_by_hand() {
        let mut output = [0.0; 2];
        swiglu(&[0.0, 1.0, 5.0, 2.0], 2, &mut output);
        near(&output, &[0.0, 2.0 / (1.0 + (-1.0_f32).exp())]);
    }

    #[test]
    fn heads_are_split_and_merged() {
        // Two positions; a row holds 1 other number, then 2 heads of 2.
        let x = [9.0, 1.0, 2.0, 3.0, 4.0, 9.0, 5.0, 6.0, 7.0, 8.0];
        let at = Heads { length: 2, row_width: 5, offset: 1, heads: 2, head_dim: 2 };
        let mut split = [0.0; 8];
        split_heads(&x, at, None, None, &mut split);
        near(&split, &[1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]);
        let mut merged = [0.0; 8];
        merge_heads(&split, 2, 2, 2, &mut merged);
        near(&merged, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let quarter = Rotation { cos: vec![1.0, 0.0], sin: vec![0.0, 1.0] };
        split_heads(&x, at, None, Some(&quarter), &mut split);
        near(&split, &[1.0, 2.0, -6.0, 5.0, 3.0, 4.0, -8.0, 7.0]);
    }

    #[test]
    fn queries_see_what_is_before_them_in_their_window() {
        let causal = Causal { start: 1, length: 2, window: 2 };
        let mut output = [0.0; 12];
        causal_softmax(&[7.0; 12], causal, 0.5, &mut output);
        near(&output, &[0.5, 0.5, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.5, 0.5]);
        let all = Causal { window: usize::MAX, ..causal };
        causal_softmax(&[0.0, 2.0 * 3.0_f32.ln(), 9.0, 0.0, 0.0, 0.0], all, 0.5, &mut output[..6]);
        near(&output[..6], &[0.25, 0.75, 0.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0]);
    }

    #[test]
    fn kernels_see_only_their_own_part_of_a_tensor() {
        let x = Tensor::arange(0.0_f32, 6.0, &Device::Cpu).unwrap().reshape((3, 2)).unwrap();
        let row = x.narrow(0, 1, 1).unwrap();
        let double = map(&row, (1, 2), |x, output| add(x, x, output)).unwrap();
        assert_eq!(double.to_vec2::<f32>().unwrap(), [[4.0, 6.0]]);
        let column = x.narrow(1, 1, 1).unwrap();
        let sum = zip(&column, &column, add).unwrap();
        assert_eq!(sum.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [2.0, 6.0, 10.0]);
    }
}
