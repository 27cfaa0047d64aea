//! The history of an order as an HTML page: a column for each service, a row for each step. The page is one file and loads nothing.

use std::fmt::Write;

use super::Flow;
use crate::service::Service;

/// The services with a column. Analytics has none: it keeps no log of an order.
const COLUMNS: [Service; 5] =
    [Service::Orders, Service::Inventory, Service::Payments, Service::Shipping, Service::Notifications];

const STYLE: &str = "
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
th { position: sticky; top: 0; background: Canvas; text-align: left; padding: .4rem .6rem; border-bottom: 2px solid GrayText; }
td { vertical-align: top; padding: .25rem .6rem; border-left: 1px solid color-mix(in srgb, GrayText 35%, transparent); }
td.at, th.at { width: 5.5rem; text-align: right; font-variant-numeric: tabular-nums; border-left: 0; }
.step { border-radius: .4rem; padding: .35rem .6rem; background: color-mix(in srgb, #3b7dd8 16%, Canvas); overflow-wrap: anywhere; }
.step.no { background: color-mix(in srgb, #d8483b 22%, Canvas); }
.step.end { background: color-mix(in srgb, #2f9e5b 22%, Canvas); }
.actor { font-weight: 600; } .cause { opacity: .7; font-size: .87em; }
";

impl Flow {
    /// Renders the history as an HTML page.
    pub fn page(&self) -> String {
        let order = escaped(&self.order);
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width\">\n<title>Order {order}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
             <h1>History of order {order}</h1>\n<table>\n<thead><tr><th class=\"at\">ms</th>"
        );
        for service in COLUMNS {
            let _ = write!(page, "<th>{}</th>", service.name());
        }
        page.push_str("</tr></thead>\n<tbody>\n");
        for step in &self.steps {
            let _ = write!(page, "<tr><td class=\"at\">{}</td>", step.at_ms);
            for service in COLUMNS {
                page.push_str("<td>");
                if service == step.service {
                    let kind = match &step.results {
                        results if results.iter().any(|result| result.starts_with("rejects")) => " no",
                        results if results.iter().any(|result| result == "ends") => " end",
                        _ => "",
                    };
                    let (actor, cause) = (escaped(&step.actor), escaped(&step.cause));
                    let results = step.results.iter().map(|result| escaped(result)).collect::<Vec<_>>().join("<br>");
                    let _ = write!(
                        page,
                        "<div class=\"step{kind}\"><div class=\"actor\">{actor}</div>{results}\
                         <div class=\"cause\">because of {cause}</div></div>"
                    );
                }
                page.push_str("</td>");
            }
            page.push_str("</tr>\n");
        }
        page.push_str("</tbody>\n</table>\n</body>\n</html>\n");
        page
    }
}

/// Escapes text for HTML. Keys are external input.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_escapes_external_text() {
        let flow = Flow { order: "<script>\"&".to_owned(), steps: Vec::new() };
        let page = flow.page();
        assert!(page.contains("&lt;script&gt;&quot;&amp;") && !page.contains("<script>"));
    }
}
