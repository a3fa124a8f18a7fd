//! Element types that a merge can read and write.

use serde::{Deserialize, Serialize};

/// A floating-point element type of a checkpoint. Spelled as in `config.json` (`float32`, ...) in files for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE half precision (`F16` in safetensors).
    Float16,
    /// The upper half of a float32 (`BF16`).
    Bfloat16,
    /// IEEE single precision (`F32`).
    Float32,
    /// IEEE double precision (`F64`).
    Float64,
}

impl Dtype {
    /// Bytes an element.
    pub const fn size(self) -> usize {
        match self {
            Self::Float16 | Self::Bfloat16 => 2,
            Self::Float32 => 4,
            Self::Float64 => 8,
        }
    }

    /// The type as safetensors spells it.
    pub const fn stored(self) -> safetensors::Dtype {
        match self {
            Self::Float16 => safetensors::Dtype::F16,
            Self::Bfloat16 => safetensors::Dtype::BF16,
            Self::Float32 => safetensors::Dtype::F32,
            Self::Float64 => safetensors::Dtype::F64,
        }
    }

    /// The type that a safetensors file names; `None` for everything that is not one of the four.
    pub const fn from_stored(stored: safetensors::Dtype) -> Option<Self> {
        match stored {
            safetensors::Dtype::F16 => Some(Self::Float16),
            safetensors::Dtype::BF16 => Some(Self::Bfloat16),
            safetensors::Dtype::F32 => Some(Self::Float32),
            safetensors::Dtype::F64 => Some(Self::Float64),
            _ => None,
        }
    }

    /// The name used in `config.json` and in recipes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

impl std::str::FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "float16" => Ok(Self::Float16),
            "bfloat16" => Ok(Self::Bfloat16),
            "float32" => Ok(Self::Float32),
            "float64" => Ok(Self::Float64),
            other => Err(format!("unknown dtype `{other}`; expected float16, bfloat16, float32 or float64")),
        }
    }
}
