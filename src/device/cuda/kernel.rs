//! The functions of the kernel image, by name.

use std::ffi::CStr;

macro_rules! kernels {
    ($($kernel:ident = $name:literal,)*) => {
        /// A function of the kernel image.
        #[derive(Debug, Clone, Copy)]
        pub enum Kernel {
            $(#[doc = concat!("`", stringify!($name), "`")] $kernel,)*
        }

        impl Kernel {
            /// All functions, each at its index.
            pub const ALL: &[Kernel] = &[$(Kernel::$kernel,)*];

            /// The function's name in the image.
            pub fn name(self) -> &'static CStr {
                match self {
                    $(Kernel::$kernel => $name,)*
                }
            }
        }
    };
}

kernels! {
    CountI32U32 = c"eplb_count_i32_u32",
    CountI64U32 = c"eplb_count_i64_u32",
    CountI32U64 = c"eplb_count_i32_u64",
    CountI64U64 = c"eplb_count_i64_u64",
    CountGeneral = c"eplb_count_general",
    RoundRobinI32 = c"eplb_route_round_robin_i32",
    RoundRobinI64 = c"eplb_route_round_robin_i64",
    RoundRobinGeneral = c"eplb_route_round_robin_general",
    TokenHashI32 = c"eplb_route_token_hash_i32",
    TokenHashI64 = c"eplb_route_token_hash_i64",
    TokenHashGeneral = c"eplb_route_token_hash_general",
    NearestI32 = c"eplb_route_nearest_i32",
    NearestI64 = c"eplb_route_nearest_i64",
    NearestGeneral = c"eplb_route_nearest_general",
    LeastLoadedI32 = c"eplb_route_least_loaded_i32",
    LeastLoadedI64 = c"eplb_route_least_loaded_i64",
    LeastLoadedGeneral = c"eplb_route_least_loaded_general",
    AddCounts = c"eplb_add_counts",
    CopyTables = c"eplb_copy_tables",
    Snapshot = c"eplb_snapshot",
}
