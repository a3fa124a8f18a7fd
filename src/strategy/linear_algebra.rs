//! Just enough dense linear algebra for a Gaussian process: Cholesky factors in row-major order.
//!
//! Sums run over a fixed number of lanes, so results do not depend on the machine's vector width.

/// Lanes of a sum.
const LANES: usize = 8;

/// The dot product of two slices of equal length.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_blocks.zip(b_blocks) {
        for lane in 0..LANES {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    let halves = [lanes[0] + lanes[4], lanes[1] + lanes[5], lanes[2] + lanes[6], lanes[3] + lanes[7]];
    (halves[0] + halves[2]) + (halves[1] + halves[3]) + rest
}

/// The lower factor of a symmetric positive definite matrix, growing row by row.
#[derive(Clone, Debug, Default)]
pub(super) struct Cholesky {
    /// Row `i` has `i + 1` numbers.
    rows: Vec<Vec<f64>>,
}

impl Cholesky {
    /// Rows so far.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Appends the row `[matrix[n][0], ..., matrix[n][n]]`. `false`, and nothing changed, if the matrix is not positive
    /// definite with it.
    pub(super) fn push(&mut self, row: &[f64]) -> bool {
        let n = self.len();
        let mut new = self.forward(&row[..n]);
        let pivot = row[n] - dot(&new, &new);
        // A pivot that is no number must not pass either.
        if pivot.is_nan() || pivot <= 1e-12 * row[n].abs() {
            return false;
        }
        new.push(pivot.sqrt());
        self.rows.push(new);
        true
    }

    /// `L x`.
    pub(super) fn multiply(&self, x: &[f64]) -> Vec<f64> {
        self.rows.iter().map(|row| dot(row, &x[..row.len()])).collect()
    }

    /// Solves `L x = b`.
    pub(super) fn forward(&self, b: &[f64]) -> Vec<f64> {
        let mut x: Vec<f64> = Vec::with_capacity(b.len() + 1);
        for (row, value) in self.rows.iter().zip(b) {
            let done = x.len();
            x.push((value - dot(&row[..done], &x)) / row[done]);
        }
        x
    }

    /// Solves `L^T x = b`.
    pub(super) fn backward(&self, b: &[f64]) -> Vec<f64> {
        let mut x = b.to_vec();
        for (place, row) in self.rows.iter().enumerate().rev() {
            let value = x[place] / row[place];
            x[place] = value;
            for (other, factor) in x.iter_mut().zip(&row[..place]) {
                *other -= factor * value;
            }
        }
        x
    }

    /// The lower triangle of the inverse of the matrix.
    pub(super) fn inverse(&self) -> Vec<Vec<f64>> {
        let n = self.len();
        // Row i of `columns` is column i of L^-1 from its diagonal on, so that products below run along rows.
        let mut columns = vec![vec![0.0; n]; n];
        for (column, values) in columns.iter_mut().enumerate() {
            values[column] = 1.0 / self.rows[column][column];
            for row in column + 1..n {
                let sum = dot(&self.rows[row][column..row], &values[column..row]);
                values[row] = -sum / self.rows[row][row];
            }
        }
        (0..n).map(|i| (0..=i).map(|j| dot(&columns[i][i..], &columns[j][i..])).collect()).collect()
    }

    /// Half the logarithm of the determinant.
    pub(super) fn half_log_determinant(&self) -> f64 {
        self.rows.iter().enumerate().map(|(place, row)| row[place].ln()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;
    use rand::RngExt;

    fn matrix(n: usize) -> Vec<Vec<f64>> {
        let mut rng = random::stream(7, "test", n as u64);
        let a: Vec<Vec<f64>> = (0..n).map(|_| (0..n).map(|_| rng.random::<f64>() - 0.5).collect()).collect();
        let ridge = |i: usize, j: usize| if i == j { 0.1 } else { 0.0 };
        (0..n).map(|i| (0..n).map(|j| dot(&a[i], &a[j]) + ridge(i, j)).collect()).collect()
    }

    #[test]
    fn solves_and_inverts() {
        for n in [1, 5, 33] {
            let matrix = matrix(n);
            let mut factor = Cholesky::default();
            assert!(matrix.iter().enumerate().all(|(i, row)| factor.push(&row[..=i])));
            let b: Vec<f64> = (0..n).map(|i| i as f64 - 2.0).collect();
            let x = factor.backward(&factor.forward(&b));
            let inverse = factor.inverse();
            let back = factor.forward(&factor.multiply(&b));
            assert!(back.iter().zip(&b).all(|(x, y)| (x - y).abs() < 1e-9));
            for i in 0..n {
                assert!((dot(&matrix[i], &x) - b[i]).abs() < 1e-8);
                let full: Vec<f64> = (0..n).map(|j| if j <= i { inverse[i][j] } else { inverse[j][i] }).collect();
                for (j, row) in matrix.iter().enumerate() {
                    assert!((dot(&full, row) - f64::from(u8::from(i == j))).abs() < 1e-8);
                }
            }
        }
    }

    #[test]
    fn refuses_what_is_not_positive_definite() {
        let mut factor = Cholesky::default();
        assert!(factor.push(&[1.0]));
        assert!(!factor.push(&[1.0, 1.0]));
        assert!(!factor.push(&[f64::NAN, 1.0]));
        assert_eq!(factor.len(), 1);
        assert!(factor.push(&[0.0, 4.0]));
        assert!((factor.half_log_determinant() - 2f64.ln()).abs() < 1e-15);
    }
}
