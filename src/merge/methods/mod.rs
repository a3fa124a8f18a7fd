//! Merge methods, one file a family; each declares its own parameters.

mod linear;
mod slerp;
mod task_arithmetic;

use super::specification::MethodSpecification;

static METHODS: [&MethodSpecification; 6] = [
    &linear::LINEAR,
    &slerp::SLERP,
    &task_arithmetic::TASK_ARITHMETIC,
    &task_arithmetic::TIES,
    &task_arithmetic::DARE_LINEAR,
    &task_arithmetic::DARE_TIES,
];

/// All merge methods.
pub fn methods() -> &'static [&'static MethodSpecification] {
    &METHODS
}

/// The method of that name.
pub fn find_method(name: &str) -> Option<&'static MethodSpecification> {
    METHODS.iter().find(|method| method.name == name).copied()
}
