use whizbang::prelude::*;

#[derive(Domain)]
#[domain(codec = json)]
struct Web;

mod cents {
    use whizbang::derive::serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(cents: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
        cents.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        Option::deserialize(from)
    }
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Web)]
struct Moved {
    #[serde(with = "cents", skip_serializing_if = "Option::is_none")]
    cents: Option<u64>,
}

fn main() {}
