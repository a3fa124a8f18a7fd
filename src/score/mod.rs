//! From metrics to decisions: objectives, paired statistics, the verdict. Pure.
