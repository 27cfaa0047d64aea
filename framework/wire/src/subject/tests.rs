//! Subjects are parsed back to their addresses, and filters select the subjects of their shard.

use proptest::prelude::*;

use super::*;

fn name() -> impl Strategy<Value = Name> {
    prop_oneof![
        "[A-Za-z0-9_-]{1,64}".prop_map(|text| Name::new(&text).unwrap()),
        prop::sample::select(vec!["cmd", "evt", "any", "outside", "events", "_", "-", "0", "whizbang"])
            .prop_map(|text| Name::new(text).unwrap()),
    ]
}

fn shard() -> impl Strategy<Value = ShardId> {
    (name(), any::<u16>()).prop_map(|(domain, shard)| ShardId::new(domain, shard))
}

fn address() -> impl Strategy<Value = Address> {
    prop_oneof![
        (shard(), prop::option::of(shard())).prop_map(|(to, from)| Address::Direct { to, from }),
        (shard(), name()).prop_map(|(shard, name)| Address::Event { shard, name }),
        shard().prop_map(Address::Events),
        (name(), prop::option::of(any::<u16>())).prop_map(|(domain, shard)| Address::CommandRequest { domain, shard }),
        (name(), name()).prop_map(|(domain, name)| Address::QueryRequest { domain, name }),
        shard().prop_map(Address::EventsRequest),
        (shard(), shard()).prop_map(|(from, to)| Address::OutboxRequest { from, to }),
        (shard(), shard()).prop_map(|(from, to)| Address::WatermarkRequest { from, to }),
        (shard(), shard()).prop_map(|(from, to)| Address::Committed { from, to }),
        shard().prop_map(Address::Head),
    ]
}

#[test]
fn namespace_allows_letters_and_digits_only() {
    assert_eq!(Namespace::default().as_str(), "whizbang");
    for text in ["", "a_b", "a-b", "a.b", "a*", ">", "a b", "é", &"a".repeat(33)] {
        assert!(Namespace::new(text).is_err(), "{text}");
    }
    assert!(Namespace::new(&"a".repeat(32)).is_ok());
}

proptest! {
    #[test]
    fn address_round_trips_through_its_subject(namespace in "[A-Za-z0-9]{1,32}", address in address()) {
        let namespace = Namespace::new(&namespace).unwrap();
        let subject = namespace.subject(&address);
        prop_assert!(subject.len() <= 255, "{} bytes", subject.len());
        prop_assert!(subject.split('.').all(Name::is_valid), "{subject}");
        prop_assert_eq!(namespace.parse(&subject), Some(address));
    }

    #[test]
    fn stream_names_are_distinct(
        one in ("[a-c]{1,2}", "[ab_]{1,2}(_events_|_commands_|_refused_)?[ab_]{1,2}"),
        other in ("[a-c]{1,2}", "[ab_]{1,2}(_events_|_commands_|_refused_)?[ab_]{1,2}"),
    ) {
        let names = |(namespace, domain): &(String, String)| {
            let (namespace, domain) = (Namespace::new(namespace).unwrap(), Name::new(domain).unwrap());
            [namespace.event_stream(&domain), namespace.direct_stream(&domain), namespace.refused_stream(&domain)]
        };
        if one != other {
            prop_assert!(names(&one).iter().all(|name| !names(&other).contains(name)));
        }
    }

    #[test]
    fn parsed_subject_is_canonical(text in "whizbang[.a-z0-9>* +]{0,40}") {
        if let Some(address) = Namespace::default().parse(&text) {
            prop_assert_eq!(Namespace::default().subject(&address), text);
        }
    }
}

#[test]
fn filters_of_a_shard_select_its_messages() {
    let matches = |filter: &str, subject: &str| {
        let (mut filter, mut subject) = (filter.split('.'), subject.split('.'));
        loop {
            match (filter.next(), subject.next()) {
                (Some(">"), Some(_)) | (None, None) => return true,
                (Some(wanted), Some(token)) if wanted == "*" || wanted == token => {}
                _ => return false,
            }
        }
    };
    let (namespace, name) = (Namespace::default(), |text| Name::from_static(text).unwrap());
    let (mine, other) = (ShardId::new(name("bank"), 1), ShardId::new(name("shop"), 11));
    let addresses = |to: &ShardId, from: &ShardId| {
        let (to, from) = (to.clone(), from.clone());
        [
            Address::Direct { to: to.clone(), from: Some(from.clone()) },
            Address::Direct { to: to.clone(), from: None },
            Address::CommandRequest { domain: to.domain.clone(), shard: Some(to.shard) },
            Address::EventsRequest(to.clone()),
            Address::OutboxRequest { from: to.clone(), to: from.clone() },
            Address::WatermarkRequest { from: from.clone(), to: to.clone() },
            Address::Committed { from: to, to: from },
        ]
    };
    let [first, second] = namespace.shard_request_filters(&mine);
    let filters = [namespace.shard_filter(&mine), first, second, namespace.shard_committed_filter(&mine)];
    let matching = |address: &Address| {
        let subject = namespace.subject(address);
        filters.iter().filter(|filter| matches(filter, &subject)).count()
    };
    for (address, foreign) in addresses(&mine, &other).iter().zip(&addresses(&other, &mine)) {
        assert_eq!(matching(address), 1, "{address:?}");
        assert_eq!(matching(foreign), 0, "{foreign:?}");
    }
    let any = Address::CommandRequest { domain: mine.domain.clone(), shard: None };
    assert_eq!(matching(&any), 0);
    let event = Address::Event { shard: mine.clone(), name: name("Deposited") };
    for address in [event, Address::Events(mine.clone())] {
        assert_eq!(namespace.event_shard(&namespace.subject(&address)), Some(mine.clone()));
    }
    assert_eq!(namespace.event_shard(&namespace.subject(&any)), None);
}
